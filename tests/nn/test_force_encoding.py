from __future__ import annotations

import pytest
import torch
from e3nn import o3

from dens_plugin.nn.force_encoding import ForceEncoding, VectorForceEncoding
from dens_plugin.testing import default_dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_is_equivariant(dtype, tolerance):
    with default_dtype(dtype):
        torch.manual_seed(0)
        encoding, forces, rotation = ForceEncoding(3, 5), torch.randn(6, 3), o3.rand_matrix()
        wigner = o3.Irreps.spherical_harmonics(3, p=1).D_from_matrix(rotation)
        expected = torch.einsum("ij,njc->nic", wigner, encoding(forces))
        assert torch.allclose(encoding(forces @ rotation.T), expected, atol=tolerance)


def test_no_force_is_exactly_zero():
    assert not ForceEncoding(4, 8)(torch.zeros(3, 3)).any()


def test_gradients_at_zero_force_are_finite():
    encoding, forces = ForceEncoding(2, 4), torch.zeros(3, 3, requires_grad=True)
    encoding(forces).sum().backward()
    assert torch.isfinite(forces.grad).all()
    assert not encoding.weight.grad.any()


def test_is_linear_in_the_magnitude():
    encoding, forces = ForceEncoding(3, 4), torch.randn(5, 3)
    assert torch.allclose(encoding(3 * forces), 3 * encoding(forces), atol=1e-5)


def test_degree_one_is_the_force():
    """ "Component" harmonics of degree 1, divided by sqrt(3), are the unit vector itself in e3nn."""
    encoding, forces = ForceEncoding(1, 1), torch.randn(5, 3)
    torch.nn.init.ones_(encoding.weight)
    assert torch.allclose(encoding(forces)[:, 1:, 0], forces, atol=1e-6)


def test_of_vectors_is_equivariant_and_without_bias():
    encoding, forces, rotation = VectorForceEncoding(4), torch.randn(5, 3), o3.rand_matrix()
    assert torch.allclose(encoding(forces @ rotation.T), rotation @ encoding(forces), atol=1e-5)
    assert not encoding(torch.zeros(3, 3)).any()
