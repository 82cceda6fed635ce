"""EquiformerV2's attention (Liao et al., arXiv:2306.12059) on plain tensors, upon `dens_plugin.nn.so2`.

| file | noun |
|---|---|
| `convolution` | the SO(2) convolution: a matrix for m = 0, complex matrices for m > 0 |
| `radial` | factors that depend on the distance |
| `message` | gather, rotate, multiply, convolve |
| `inputs`, `loop_inputs` | what that convolution is applied to: in plain torch, and by loops |
| `attention` | activate, convolve, weigh, rotate back, sum |
| `fused` | message and attention by the kernels of `dens_plugin.nn.backends.triton` |
| `degree_linear` | linear layers with a matrix for each degree |
| `degree_norm` | norms of an atom's features |

E edges, N atoms, M targets, S coefficients of an edge, L = (lmax + 1)^2 of a node, C channels, H heads.
"""
