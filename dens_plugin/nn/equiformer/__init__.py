"""Equiformer (v1): Liao and Smidt, "Equiformer: Equivariant Graph Attention Transformer", arXiv:2206.11990.

Features are a list with one tensor (N, 2l + 1, C_l) per degree l, of even parity: SE(3)-equivariance, as for MD17.
"""
