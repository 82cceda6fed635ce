"""EGNN: Satorras, Hoogeboom and Welling, "E(n) Equivariant Graph Neural Networks", arXiv:2102.09844.

Atoms have scalars and coordinates. What moves is kept as a displacement from where atoms were given, so that an edge
across the face of a cell is as good as any other.
"""
