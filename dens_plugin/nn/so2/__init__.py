"""SO(2) convolutions along edges: the arithmetic of EquiformerV2 and eSCN on plain tensors, in few passes over memory.

| file | noun |
|---|---|
| `layout` | order of the coefficients of an edge |
| `edges` | edges sorted by target, their rotations, and the pieces in which they are computed |
| `rotation` | from the frame of a target to those of its edges, and back |
| `convolution` | matrix for m = 0, complex matrices for m > 0 |
| `radial` | factors that depend on the distance |
| `message` | gather, rotate, multiply, convolve |
| `activation` | on a grid of the sphere, or by gates |
| `attention` | activate, convolve, weigh, rotate back, sum |
| `feed_forward` | of nodes, on a grid |
| `grid_parts` | parts of a batch that fit a cache on the grid |
| `fused` | message and attention by the kernels of `dens_plugin.nn.kernels` |

E edges, N atoms, M targets, S coefficients of an edge, L = (lmax + 1)^2 of a node, C channels, G points, H heads.
EquiformerV2: Liao, Wood, Das and Smidt, arXiv:2306.12059. eSCN: Passaro and Zitnick, arXiv:2302.03655.
"""
