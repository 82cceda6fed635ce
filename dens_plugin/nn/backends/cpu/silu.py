"""SiLU and its derivative in a few instructions that LLVM turns into vectors, to float32's rounding.

exp(-x) = 2^n 2^f with n the nearest integer to -x log2(e), and 2^f, |f| <= 1/2, a polynomial of degree 6.
"""

from __future__ import annotations

import numpy as np

from dens_plugin.nn.backends.cpu.team import inlined

_F = np.float32
_LOG2_E = _F(1.4426950408889634)
_ROUND = _F(1.5 * 2**23)  # a number added to this is rounded to an integer, which stands in the last bits
_LARGEST = _F(62)  # of the powers of two, so that a product of two of them stays within float32's range
_LEAST = _F(-44)  # below it the sigmoid is less than 2^-62, and the product of both less than 1e-17


@inlined
def one_plus_exp(x):  # type: ignore[no-untyped-def]
    """1 + exp(-x), at most some 2^62; NaN gives NaN."""
    power = -x * _LOG2_E
    power = -_LARGEST if power < -_LARGEST else power
    power = _LARGEST if power > _LARGEST else power
    rounded = power + _ROUND
    f = power - (rounded - _ROUND)
    value = _F(1.5403530e-4)
    value = value * f + _F(1.3333558e-3)
    value = value * f + _F(9.6181291e-3)
    value = value * f + _F(5.5504109e-2)
    value = value * f + _F(2.4022651e-1)
    value = value * f + _F(6.9314718e-1)
    value = value * f + _F(1)
    bits = _F(value).view(np.int32) + (_F(rounded).view(np.int32) << 23)  # n added to the exponent
    return _F(1) + np.int32(bits).view(np.float32)


@inlined
def bounded(x):  # type: ignore[no-untyped-def]
    """What to multiply a sigmoid of `one_plus_exp` with; NaN stays."""
    return _LEAST if x < _LEAST else x


@inlined
def silu(x):  # type: ignore[no-untyped-def]
    """As torch's, x / (1 + exp(-x))."""
    return bounded(x) / one_plus_exp(x)


@inlined
def silu_derivative(x):  # type: ignore[no-untyped-def]
    """Of `silu` at x."""
    return silu_derivative_from(x, _F(1) / one_plus_exp(x))


@inlined
def silu_derivative_from(x, sigmoid):  # type: ignore[no-untyped-def]
    """The derivative of x times its sigmoid, from both."""
    return sigmoid * (_F(1) + bounded(x) * (_F(1) - sigmoid))
