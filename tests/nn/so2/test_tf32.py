from __future__ import annotations

import pytest
import torch

from dens_plugin.nn.so2.tf32 import backward_as_forward, tf32_products


def is_allowed():
    return torch.backends.cuda.matmul.allow_tf32


@backward_as_forward
class Recording(torch.autograd.Function):
    """The identity, which notes the switch in its backward pass, where it may fail."""

    seen: tuple[bool, ...] = ()
    fails = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Recording.seen += (is_allowed(),)
        if Recording.fails:
            raise RuntimeError("out of memory")
        return grad


def fail_within(allow):
    with tf32_products(allow):
        assert is_allowed() == allow
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("allow", [True, False])
def test_holds_within_its_context_alone(allow):
    before = is_allowed()
    with tf32_products(not allow):
        with pytest.raises(RuntimeError, match="out of memory"):
            fail_within(allow)
        assert is_allowed() != allow
    assert is_allowed() == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_backward_pass_is_as_its_forward_pass(fails, monkeypatch):
    monkeypatch.setattr(Recording, "seen", ())
    monkeypatch.setattr(Recording, "fails", fails)
    x = torch.ones(1, requires_grad=True)
    for allow in (True, False):
        with tf32_products(allow):
            out = Recording.apply(x)
        with tf32_products(not allow):
            if fails:
                with pytest.raises(RuntimeError, match="out of memory"):
                    out.backward()
            else:
                out.backward()
            assert is_allowed() != allow
    assert Recording.seen == (True, False)
