from __future__ import annotations

import torch

from dens_plugin.nn.zero_gradients import with_zero_gradients


def test_unused_parameters_get_zeros_and_the_others_theirs():
    used, unused = (torch.randn(3, requires_grad=True) for _ in range(2))
    output = used.square()
    found = with_zero_gradients(output, [unused])
    assert torch.equal(found, output)
    found.sum().backward()
    assert torch.equal(unused.grad, torch.zeros(3))
    assert torch.equal(used.grad, 2 * used)


def test_adds_to_what_another_use_gives():
    parameter = torch.randn(3, requires_grad=True)
    with_zero_gradients(3 * parameter, [parameter]).sum().backward()
    assert torch.equal(parameter.grad, torch.full((3,), 3.0))


def test_finite_whatever_the_parameter():
    parameter = torch.tensor([torch.inf, torch.nan], requires_grad=True)
    output = torch.ones(2, requires_grad=True)
    with_zero_gradients(output, [parameter]).sum().backward()
    assert torch.equal(parameter.grad, torch.zeros(2))


def test_frozen_parameters_stay_without():
    frozen, output = torch.randn(3), torch.ones(2, requires_grad=True)
    with_zero_gradients(output, [frozen]).sum().backward()
    assert frozen.grad is None


def test_no_graph_at_inference():
    with torch.no_grad():
        assert not with_zero_gradients(torch.ones(2), [torch.randn(3, requires_grad=True)]).requires_grad
