from __future__ import annotations

import pytest
import torch
from so2_samples import check
from torch.nn import functional

from dens_plugin.nn.equiformer_v2.degree_linear import DegreeLinear, Linear
from dens_plugin.nn.so2.degree_copies import copies_of

pytestmark = pytest.mark.usefixtures("exact")
DEGREES = [0, *[1] * 3, *[2] * 5]


def test_linear_layers_of_degrees_fold():
    layer, other = DegreeLinear(torch.randn(3, 4, 2), torch.randn(4)), torch.randn(5, 4)
    features = torch.randn(6, 9, 2)
    expected = torch.einsum("nmi,moi->nmo", features, layer.weight[DEGREES])
    expected[:, 0] += layer.bias
    assert torch.allclose(layer(features), expected)
    assert torch.allclose(layer.before(other)(features), expected @ other.T)
    behind, inputs = torch.randn(2, 3), torch.randn(6, 9, 3)
    assert torch.allclose(layer.after(behind)(inputs), layer(inputs @ behind.T))


@pytest.mark.parametrize("has_gates", [True, False])
def test_by_component_is_by_degree(has_gates):
    """A GPU's way, in plain torch."""
    inputs = [torch.randn(*shape, requires_grad=True) for shape in [(6, 9, 2), (3, 4, 2), (4,), (5, 2), (5,)]]
    inputs = inputs if has_gates else inputs[:3]

    def both(features, weight, bias, *gates):
        found = DegreeLinear(weight, bias)._by_component(features, Linear(*gates) if gates else None)
        return torch.cat([part.flatten() for part in found if part is not None])

    def expected(features, weight, bias, *gates):
        out, of_gates = DegreeLinear(weight, bias).with_gates(features, Linear(*gates) if gates else None)
        assert of_gates is None or torch.equal(of_gates, functional.linear(features[:, 0], *gates))
        return torch.cat([part.flatten() for part in (out, of_gates) if part is not None])

    check(both, expected, *inputs)


def test_copies_of_weights():
    weight = torch.randn(2, 3, 4, 5, requires_grad=True)
    check(copies_of, lambda of: of[:, DEGREES], weight)
