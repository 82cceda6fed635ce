"""Loops for a CPU, in float32: what plain torch does in several passes over memory, in one.

| file | noun |
|---|---|
| `team` | whether loops can run, and how: compiled by Numba, in torch's own threads |
| `sums` | weighted sums of a few rows, of which all of this is made |
| `silu` | its exponential, in a few instructions |
| `rotate` | gather, rotate to the edges, multiply by radial factors |
| `product_gradient` | the gradients of that, at factors and atoms |
| `aggregate` | weigh, rotate back, sum at atoms; and the gradients |
| `s2_activation` | SiLU on a grid of the sphere; and its gradient |
| `painn_message` | PaiNN's messages along pairs of atoms; their gradients, and the gradients of these |
| `degree_norm` | norms of an atom's features; and their gradients |

What chooses between them and plain torch is in `dens_plugin.nn.so2`, for norms in `dens_plugin.backbones`. Functions
get addresses, and read arrays through `team.floats`: Numba would count references to slices of arrays, which costs more
than most sums here. Sums are in a fixed order that does not depend on the number of threads.
"""
