"""Norms by loops against fairchem's own."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.models.equiformer_v2.layer_norm import (
    EquivariantLayerNormArraySphericalHarmonics,
    EquivariantRMSNormArraySphericalHarmonicsV2,
)

from dens_plugin.backbones.equiformer_v2 import fast as equiformer_v2_fast
from dens_plugin.backbones.equiformer_v2.fast import use_fast_path
from dens_plugin.nn.backends.cpu.team import loops_reason
from dens_plugin.nn.equiformer_v2.degree_norm import balance

CHANNELS = 5
HOSTS = [EquivariantLayerNormArraySphericalHarmonics, EquivariantRMSNormArraySphericalHarmonicsV2]
MEANS = {
    "of degrees": {},
    "of components": {"std_balance_degrees": False},
    "none": {"std_balance_degrees": False, "normalization": "norm"},
}
needs_loops = pytest.mark.skipif(loops_reason() is not None, reason=str(loops_reason()))
on_all_norms = pytest.mark.parametrize("host", HOSTS, ids=["separate", "all degrees"])


def both(host, lmax, **kwargs):
    """fairchem's norm with random parameters, and the same on the fast path, in a module of its own."""
    torch.manual_seed(0)
    expected = host(lmax, CHANNELS, eps=1e-3, **kwargs)
    for parameter in expected.parameters():
        parameter.data.normal_()
    found = torch.nn.ModuleList([host(lmax, CHANNELS, eps=1e-3, **kwargs)])
    found[0].load_state_dict(expected.state_dict())
    use_fast_path(found, None)
    return expected, found[0]


def with_gradients(norm, features):
    features = features.detach().requires_grad_()
    out = norm(features)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, [features, *norm.parameters()], seed, materialize_grads=True)]


@needs_loops
@on_all_norms
@pytest.mark.parametrize("means", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("lmax", [0, 1, 3, 6])
def test_are_fairchems(host, means, lmax, monkeypatch):
    expected, found = both(host, lmax, **means)
    monkeypatch.setattr(host, "forward", lambda *_: pytest.fail("fairchem's own code ran"))
    features = 3 * torch.randn((lmax + 1) ** 2, 70, CHANNELS).transpose(0, 1)
    results = with_gradients(found, features)
    monkeypatch.undo()
    for a, b in zip(results, with_gradients(expected, features), strict=True):
        assert a.shape == b.shape
        assert a.numel() == 0 or (a - b).abs().max() <= 3e-6 * b.abs().max()


@on_all_norms
@pytest.mark.parametrize("shape", [(4, 4, CHANNELS), (4, 9, 2 * CHANNELS)])
def test_another_shape_is_fairchems_error(host, shape):
    expected, found = both(host, 2)
    for norm in (expected, found):
        with pytest.raises(RuntimeError):
            norm(torch.randn(shape))


@on_all_norms
@pytest.mark.parametrize("case", ["no weights", "float64", "no loops"])
def test_what_loops_do_not_cover_is_fairchems(host, case, monkeypatch):
    expected, found = both(host, 2, affine=case != "no weights")
    if case == "no loops":
        monkeypatch.setattr(equiformer_v2_fast, "computes", lambda *_: False)
    dtype = torch.float64 if case == "float64" else torch.float32
    features = torch.randn(4, 9, CHANNELS, dtype=dtype)
    assert torch.equal(found.to(dtype)(features), expected.to(dtype)(features))


@needs_loops
@on_all_norms
def test_no_atoms_and_nan(host):
    _, norm = both(host, 2)
    out, of_features, *of_others = with_gradients(norm, torch.zeros(0, 9, CHANNELS))
    assert out.shape == of_features.shape == (0, 9, CHANNELS)
    assert all((grad == 0).all() for grad in of_others)
    features = torch.randn(3, 9, CHANNELS)
    features[1, 4, 2] = torch.nan
    assert norm(features).isnan().any(2).any(1).tolist() == [False, True, False]


@needs_loops
def test_a_mean_far_above_the_spread():
    _, norm = both(HOSTS[0], 1)
    features = 100 + torch.randn(50, 4, CHANNELS)
    expected = torch.nn.functional.layer_norm(
        features[:, 0].double(), (CHANNELS,), norm.norm_l0.weight.double(), norm.norm_l0.bias.double(), norm.eps
    )
    assert (norm(features)[:, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_loops
def test_threads_do_not_change_a_bit():
    _, norm = both(HOSTS[1], 3)
    features, before, results = torch.randn(130, 16, CHANNELS), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(with_gradients(norm, features))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_weights_of_squares_add_up_to_a_mean():
    for kind in ("degrees", "components"):
        assert balance(3, 4, 0.5, kind=kind, is_separate=False)[:-1].sum() * 4 == pytest.approx(1)
        assert balance(3, 4, 0.5, kind=kind, is_separate=True)[:-1].sum() * 4 == pytest.approx(2)
    assert balance(3, 4, 0.5, kind="none", is_separate=True).tolist() == [*[0.25] * 16, 0.5]
