"""Fused kernels of equivariant attention, each beside its twin in plain torch.

| file | function |
|---|---|
| `s2_activation` | activation on a grid of the sphere that is never in memory |
| `rotate_to_edges` | gather both ends of an edge, rotate into its frame, multiply by its radial functions |
| `softmax_by_target` | attention weights over the edges of each atom |
| `aggregate` | weight, rotate back and sum at the targets, without atomics |

A public function takes Triton's kernels for CUDA tensors where `availability.triton_reason` names no reason against
them, and the twin (`..._plain`) otherwise: CPU, float64, old GPUs. The kernels (`..._triton`) can be called themselves,
on a CUDA device or under TRITON_INTERPRET=1. Their sums are in float32 whatever the storage and in a fixed order; their
second derivative raises an error.
"""
