"""The weight of an objective's own output in the loss, and how it changes during training."""

from __future__ import annotations


def require_coefficient(coefficient: float, decay_to: float = 1.0) -> None:
    """Raise ValueError for a weight in the loss, or a share of it at the end of training, that is impossible."""
    if not 0 <= coefficient < float("inf"):
        raise ValueError(f"coefficient must be finite and not negative, got {coefficient}")
    if not 0 <= decay_to <= 1:
        raise ValueError(f"decay_to must be a share in [0, 1], got {decay_to}; 1 keeps the coefficient constant")


def linearly(coefficient: float, decay_to: float, progress: float) -> float:
    """The coefficient after a share ``progress`` of the training, at whose end the share ``decay_to`` is left."""
    return coefficient * (1 - (1 - decay_to) * min(max(progress, 0.0), 1.0))
