"""Triton compiles for a GPU without one, which shows what its interpreter does not: types, shapes and shared memory."""

from __future__ import annotations

import inspect

import pytest
import torch
from kernel_samples import INTERPRETED

from dens_plugin.nn.backends.triton import (
    aggregate,
    attention_logits,
    availability,
    degree_norm,
    degree_sums,
    drop_path,
    norm_silu,
    order_planes,
    rotate_to_edges,
    s2_activation,
    softmax_by_target,
)
from dens_plugin.nn.so2.layout import Layout

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")

SHARED_MEMORY = {70: 96, 80: 99, 90: 99}  # KiB; 99 is what every card from 8.0 on has for a block
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compiled(kernel, types, constants, capability, **options):
    """The kernel for a device: `types` of its leading arguments, the rest being constants."""
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    names = kernel.arg_names
    if "constexprs" in inspect.signature(compiler.ASTSource.__init__).parameters:
        signature = {**dict(zip(names, types, strict=False)), **dict.fromkeys(constants, "constexpr")}
        source = compiler.ASTSource(kernel, signature, {(names.index(name),): of for name, of in constants.items()})
    else:  # up to Triton 3.1
        signature = dict(enumerate(types))
        source = compiler.ASTSource(kernel, signature, {names.index(name): of for name, of in constants.items()})
    return triton.compile(source, target=target, options=options)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Launches compile instead of running; a list of what they compiled for the capability that it is called with."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def record(capability):
        results = []

        def run(kernel, grid, arguments, constants):
            names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}
            types = [names[of.dtype] if isinstance(of, torch.Tensor) else "i32" for of in arguments]
            options = {"num_warps": constants.pop("num_warps", 4), "num_stages": constants.pop("num_stages", 3)}
            results.append(compiled(kernel, types, constants, capability, **options))

        monkeypatch.setattr(availability, "run", run)
        return results

    return record


def run(function, inputs, *others):
    out = function(*(tensor.requires_grad_() for tensor in inputs), *others)
    torch.autograd.grad(out.sum(), inputs, allow_unused=True)


@pytest.mark.parametrize(
    ("stored", "coefficients", "allow_tf32", "capability"),
    [("fp32", 29, False, 70), ("fp32", 29, True, 90), ("bf16", 49, False, 80), ("bf16", 75, False, 90)],
)
def test_s2_activation_compiles(launched, stored, coefficients, allow_tf32, capability):
    results = launched(capability)
    inputs = [torch.zeros(2, (coefficients + 1) * 64, dtype=STORED[stored])]
    matrices = torch.zeros(324, coefficients), torch.zeros(324, coefficients)
    run(lambda of: s2_activation.s2_activation(of, *matrices, has_gates=True, allow_tf32=allow_tf32), inputs)
    assert len(results) == 2
    assert all(of.metadata.shared <= SHARED_MEMORY[capability] * 1024 for of in results)
    uses_matrix_units = ["mma" in of.asm["ptx"] for of in results]
    assert uses_matrix_units == [allow_tf32 or stored == "bf16"] * 2  # exact products never are TF32


@pytest.mark.parametrize(("stored", "rows", "capability"), [("fp32", 3, 90), ("bf16", 5, 80)])
def test_rotations_compile(launched, stored, rows, capability):
    results = launched(capability)
    edges = rotate_to_edges.EdgesByAtom(*(torch.zeros(of, dtype=torch.int64) for of in (1, 1, 3, 1, 3)))
    turn = torch.zeros(1, 7, 9)
    inputs = [torch.zeros(2, 9, 16, dtype=STORED[stored]), torch.zeros(1, rows, 32, dtype=STORED[stored])]
    run(lambda nodes, radial: rotate_to_edges.rotate_to_edges(nodes, edges, turn, radial), inputs)
    values, weights = torch.zeros(1, 7, 16, dtype=STORED[stored]), torch.zeros(1, 4)
    offsets = torch.tensor([0, 1, 1])
    run(aggregate.aggregate, [values, weights], turn, torch.ones(7), offsets, offsets[:1])
    run(aggregate.aggregate, [values], None, turn, torch.ones(7), offsets, offsets[:1])
    run(softmax_by_target.softmax_by_target, [torch.zeros(1, 4)], offsets)
    assert len(results) == 9
    assert not any("atom." in of.asm["ptx"] or "red.global" in of.asm["ptx"] for of in results)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("is_separate", [True, False])
def test_norms_compile(launched, capability, is_separate):
    results = launched(capability)
    features, weights = torch.zeros(2, 49, 128), (torch.zeros(128), torch.zeros(6, 128))
    degree_norm.normed(features, torch.zeros(50), weights, torch.zeros(128), is_separate=is_separate)
    degree_norm.normed_backward(features, features, torch.zeros(50), weights, is_separate=is_separate)
    assert len(results) == 2
    assert all(of.metadata.shared <= SHARED_MEMORY[capability] * 1024 for of in results)


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_small_sums_compile(launched, stored):
    results = launched(80)
    degree_sums.degree_sums(torch.zeros(9, 3, 4, dtype=stored))
    layout, features = Layout(6, 2), torch.zeros(2, 29 * 64, dtype=stored)
    planes = order_planes.spread(features, layout, 64, is_conjugate=False)
    order_planes.join(planes, layout, 64, features, is_conjugate=True)
    drop_path.drop_path(features, torch.zeros(1), torch.zeros(2, dtype=torch.int64), 0.9)
    assert len(results) == 4


@pytest.mark.parametrize(("stored", "capability"), [("fp32", 90), ("bf16", 80)])
def test_norms_of_edges_compile(launched, stored, capability):
    results = launched(capability)
    weight, vectors, kind = torch.zeros(64), torch.zeros(8, 64), STORED[stored]
    norm = weight, weight, 1e-5
    run(lambda x: attention_logits.attention_logits(x, norm, vectors, 0.2), [torch.zeros(3, 512, dtype=kind)])
    elements = norm_silu.Elements.of(torch.zeros(2, 3, dtype=torch.int64), 5, kind)
    tables = torch.zeros(5, 64, dtype=kind), torch.zeros(5, 64, dtype=kind)
    run(lambda x: norm_silu.norm_silu(x, norm, tables, elements), [torch.zeros(3, 64, dtype=kind)])
    run(lambda x: norm_silu.norm_silu(x, norm), [torch.zeros(3, 64, dtype=kind)])
    assert len(results) == 6
