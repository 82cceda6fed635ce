"""Linear layers of EquiformerV2 that have a matrix for each degree.

    y_nio = sum over c of  W_l(i),oc x_nic + [i = 0] b_o          (N, L, C')  from  (N, L, C)

On a CPU a product for each degree, whose nodes and components are then the rows of one matrix. On a GPU, where asking
for so many small products takes longer than they do, one batched product over the L components, of which those of one
degree have copies of its matrix. A network on the channels of a grid's points commutes with what stands before and
behind, so that their matrices are multiplied once (`DegreeLinear.before`, `DegreeLinear.after`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dens_plugin.nn.equiformer_v2.linear import Linear
from dens_plugin.nn.so2.degree_copies import copies_of
from dens_plugin.nn.so2.tf32 import backward_as_forward


class DegreeLinear(NamedTuple):
    """A linear layer for each degree.

    Attributes:
        weight: (lmax + 1, C', C), in the precision of the product.
        bias: (C',) of degree 0.
        is_copied: whether the weight is that of every component already, ((lmax + 1)^2, C', C): for a GPU alone.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    is_copied: bool = False

    def after(self, linear: torch.Tensor) -> DegreeLinear:
        """This one behind a linear layer (C, B) without a bias."""
        return DegreeLinear(self.weight @ linear, self.bias)

    def before(self, linear: torch.Tensor) -> DegreeLinear:
        """This one in front of a linear layer (D, C') without a bias."""
        return DegreeLinear(linear @ self.weight, linear @ self.bias)

    def to(self, dtype: torch.dtype) -> DegreeLinear:
        """In another precision."""
        return self._replace(weight=self.weight.to(dtype), bias=self.bias.to(dtype))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(N, (lmax + 1)^2, C') of (N, (lmax + 1)^2, C)."""
        features = features.to(self.weight.dtype)
        if features.is_cuda:
            return self._by_component(features, None)[0]
        sizes = [2 * degree + 1 for degree in range(len(self.weight))]
        of_degrees = zip(features.split(sizes, dim=1), self.weight, strict=True)
        # Flat, as a product with a part that is strided would be one small product for each node.
        scalars, *others = (
            functional.linear(part.flatten(0, 1), weight).unflatten(0, part.shape[:2]) for part, weight in of_degrees
        )
        return torch.cat([scalars + self.bias, *others], dim=1)

    def with_gates(self, features: torch.Tensor, gates: Linear | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Besides, (N, D) of another layer that has degree 0 of the same features, if there is one."""
        features = features.to(self.weight.dtype)
        gates = None if gates is None else gates.to(features.dtype)
        if features.is_cuda:
            return self._by_component(features, gates)
        return self(features), None if gates is None else functional.linear(features[:, 0], *gates)

    def _by_component(self, features: torch.Tensor, gates: Linear | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = self.weight if self.is_copied else copies_of(self.weight)
        out: tuple[torch.Tensor, torch.Tensor | None] = _ByComponent.apply(
            features, weight, self.bias, *(gates or (None, None))
        )
        return out


@backward_as_forward
class _ByComponent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        gate_weight: torch.Tensor | None,
        gate_bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.save_for_backward(features, weight, gate_weight)
        out = features.new_empty(*features.shape[:2], weight.shape[1])
        torch.bmm(features.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
        out[:, 0] += bias
        gates = None
        if gate_weight is not None:
            gates = torch.addmm(gate_bias, features[:, 0], gate_weight.t())
        return out, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, of_gates: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        features, weight, gate_weight = ctx.saved_tensors
        out = torch.empty_like(features)
        torch.bmm(grad.transpose(0, 1), weight, out=out.transpose(0, 1))
        of_weight = torch.bmm(grad.permute(1, 2, 0), features.transpose(0, 1))
        of_gate_weight = of_gate_bias = None
        if gate_weight is not None and of_gates is not None:
            out[:, 0].addmm_(of_gates, gate_weight)
            of_gate_weight, of_gate_bias = of_gates.t() @ features[:, 0], of_gates.sum(0)
        return out, of_weight, grad[:, 0].sum(0), of_gate_weight, of_gate_bias
