"""What EquiformerV2 and eSCN share: edges in whose frames a rotation is a turn about one axis, and grids on the sphere.

| file | noun |
|---|---|
| `layout` | order of the coefficients of an edge |
| `orders` | where the orders m are among coefficients and factors |
| `rotated_edges` | edges sorted by target, their rotations, and the pieces in which they are computed |
| `rotation` | from the frame of a target to those of its edges, and back |
| `by_loops` | the same by the loops of `dens_plugin.nn.backends.cpu` |
| `activation` | on a grid of the sphere, or by gates |
| `grid_matrix` | to the points of a grid and back |
| `grid_parts` | parts of a batch that fit a cache on the grid |
| `grid_mlp` | a network on a grid's points, between node features |
| `tf32` | products in TF32, forward and backward |

E edges, N atoms, M targets, S coefficients of an edge, L = (lmax + 1)^2 of a node, C channels, G points, H heads.
EquiformerV2: Liao, Wood, Das and Smidt, arXiv:2306.12059. eSCN: Passaro and Zitnick, arXiv:2302.03655.
"""
