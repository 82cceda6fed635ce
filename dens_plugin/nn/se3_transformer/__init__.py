"""SE(3)-Transformer: Fuchs, Worrall, Fischer and Welling, arXiv:2006.10503.

Features are a list with one tensor (N, 2l + 1, C_l) per degree l. Degrees have no parity: mirror images may
differ.
"""
