"""Fused kernels of equivariant networks for a GPU.

| file | function |
|---|---|
| `s2_activation` | activation on a grid of the sphere that is never in memory |
| `rotate_to_edges` | gather both ends of an edge, rotate into its frame, multiply by its radial functions |
| `softmax_by_target` | attention weights over the edges of each atom |
| `aggregate` | weight, rotate back and sum at the targets, without atomics |
| `order_planes` | three factors of complex products, and their sums |
| `degree_norm` | norms of an atom's features |
| `attention_logits` | norm, activation and product with a vector |
| `norm_silu` | norm and activation of a radial function |
| `drop_path` | stochastic depth |
| `degree_sums` | sums over a degree's components |

Whoever calls them has asked `choice.machine_for`; on a CPU they run in Triton's interpreter (TRITON_INTERPRET=1). Their
twins in plain torch are beside the tests. Their sums are in float32 whatever the storage and in a fixed order; their
second derivative raises an error.
"""
