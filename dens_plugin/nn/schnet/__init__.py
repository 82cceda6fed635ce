"""SchNet (arXiv:1706.08566) on plain tensors: scalars of atoms, and filters of distances."""
