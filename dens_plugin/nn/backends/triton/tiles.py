"""Sizes of what one program holds."""

from __future__ import annotations

PROGRAMS = 256  # that share the rows of a sum over all of them: two for every processor of an H100, in a fixed order


def power_of_two(least: int) -> int:
    """The smallest power of two that is no less, as sides of tiles must be."""
    return 1 << max(0, least - 1).bit_length()
