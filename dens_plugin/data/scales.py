"""Standard deviations that labels are divided by, of which those that are only rounding are none."""

from __future__ import annotations

import numpy as np

_ROUNDING = 1e-10  # of the numbers: a mean or a fit of equal ones leaves less
_FEW_DIGITS = 1e-3  # six decimals would leave three digits of it


def is_rounding(spread: float, *, size: float) -> bool:
    """Whether a deviation is 0, or what computing it makes of equal numbers as large as ``size``."""
    return bool(spread <= _ROUNDING * size)


def divisor(spread: float, *, size: float) -> float:
    """The deviation of numbers as large as ``size``, and 1 in place of one by which nothing can be divided."""
    return 1.0 if is_rounding(spread, size=size) else float(spread)


def size_of(values: np.ndarray) -> float:
    """The largest of some numbers, without its sign; 0 of none."""
    return float(np.abs(values).max(initial=0.0))


def as_yaml(value: float, *, scale: float) -> str:
    """A number of labels that deviate by ``scale``: six decimals, or more of small ones; YAML asks for the dot."""
    return f"{value:.6e}" if 0 < scale < _FEW_DIGITS else f"{value:.6f}"
