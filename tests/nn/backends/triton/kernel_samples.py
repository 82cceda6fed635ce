"""Small inputs for the kernels, and where their Triton versions can run in this process."""

from __future__ import annotations

import os

import pytest
import torch

from dens_plugin.nn.backends.triton.edges_by_atom import edges_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_triton = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="test_interpreter.py runs this under TRITON_INTERPRET=1"
)
# Relative errors of outputs and gradients against the twin. bf16 keeps 8 bits, which the interpreter truncates.
TOLERANCES = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-2, 1e-2), torch.float16: (2e-3, 2e-3)}


def order(lmax, mmax):
    """(degree, order) of each coefficient, written down from the definition."""
    pairs = [(degree, 0) for degree in range(lmax + 1)]
    for m in range(1, mmax + 1):
        pairs += [(degree, m) for degree in range(m, lmax + 1)]
        pairs += [(degree, -m) for degree in range(m, lmax + 1)]
    return pairs


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def rotation(edges, lmax, mmax, dtype=torch.float32):
    """Random blocks where a Wigner-D matrix has them, zeros elsewhere."""
    degree = torch.tensor([pair[0] for pair in order(lmax, mmax)])
    columns = torch.arange(lmax + 1).repeat_interleave(2 * torch.arange(lmax + 1) + 1)
    mask = (degree[:, None] == columns[None, :]).to(DEVICE)
    return random(edges, *mask.shape, dtype=dtype) * mask


def graph(source, target, atoms):
    return edges_of(torch.tensor(source, device=DEVICE).long(), torch.tensor(target, device=DEVICE).long(), atoms)


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()


def assert_twins(kernel, twin, inputs, others, dtype, roundings=1):
    """Both give the same output and the same gradients of `inputs`, in the same types, after so many roundings."""
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    out, expected = kernel(*inputs, *others), twin(*inputs, *others)
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    grad = random(*out.shape, seed=7, dtype=out.dtype)
    gradients = torch.autograd.grad(out, inputs, grad)
    expected_gradients = torch.autograd.grad(expected, inputs, grad)
    at_most, gradients_at_most = (roundings * tolerance for tolerance in TOLERANCES[dtype])
    assert relative(out, expected) <= at_most
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert relative(gradient, expected_gradient) <= gradients_at_most
