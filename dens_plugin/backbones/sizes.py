"""Numbers of layers, channels and the like."""

from __future__ import annotations

from typing import Any


def require_sizes(**sizes: Any) -> None:
    """Raise ValueError unless a setting is a whole number above 0."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number above 0, got {size!r}")
