"""TorchMD-NET's equivariant transformer (arXiv:2202.02541) on plain tensors."""
