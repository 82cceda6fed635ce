"""PaiNN on plain tensors: scalars (N, C) and vectors (N, 3, C) of atoms, and messages between them."""
