"""Sizes of a network: counts, distances, degrees and rates among the settings of a model, looked at before it is built.

fairchem builds a network without layers, or one that takes a billion ångströms for its cutoff, without a word.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from dens_plugin.settings import number

FARTHEST = 100.0  # Å; beyond it radial functions do not tell bonds apart, and periodic neighbours fill the memory
HIGHEST_DEGREE = 11  # of which fairchem has rotations
MOST_DEGREES = 8  # of our own networks, whose couplings of more than these take gigabytes and minutes

_RATES = {"alpha_drop", "drop_path_rate", "proj_drop"}
_DISTANCES = {"cutoff", "max_radius"}
_DEGREES = {"lmax", "mmax"}
_DEGREE_LISTS = {"lmax_list", "mmax_list"}
_WIDTHS = {"basis_width_scalar", "distance_resolution"}
# Counts of fairchem's networks; those that are not listed may have a number of something that may be zero.
_COUNT = re.compile(
    r"num_(layers|heads|distance_basis|radial_basis|sphere_samples|rbf|gaussians|filters|interactions|elements)"
    r"|(\w+_)?channels|max_(neighbors|num_elements)|grid_resolution|resolution|embedding_dimension|value_divisor"
)


def require_sizes(settings: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], where: str) -> None:
    """Raise ValueError for a size that no network can have.

    Args:
        settings: of a model, backbone or head.
        accepted: the arguments of its constructor.
        where: the block's name.
    """
    for key, value in settings.items():
        name = f"{where}.{key}"
        if key in _DEGREE_LISTS:
            _require_degree_list(value, name)
        elif key == "channels" and isinstance(value, list):
            _require_degrees(len(value), name)
        elif value is None or isinstance(value, (list, Mapping)):
            continue
        elif key == "num_degrees":
            _require_degrees(value, name)
        elif key in _DISTANCES:
            _require_distance(value, name)
        elif key in _WIDTHS:
            _require_width(value, name)
        elif key in _DEGREES:
            _require_degree(value, name)
        elif key in _RATES:
            _require_rate(value, name)
        elif _COUNT.fullmatch(key):
            _require_count(value, name, accepted.get(key))
    _require_orders(settings, where)


def _require_distance(value: Any, name: str) -> None:
    if not 0 < number(value, name) <= FARTHEST:
        raise ValueError(
            f"{name} must be a number of Å above 0 and at most {FARTHEST:g}, got {value!r}; 5 to 12 are usual"
        )


def _require_width(value: Any, name: str) -> None:
    if not 0 < number(value, name) < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def _require_rate(value: Any, name: str) -> None:
    if not 0 <= number(value, name) < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def _require_count(value: Any, name: str, parameter: inspect.Parameter | None) -> None:
    """A whole number above 0; a setting whose default is a float need only be above 0."""
    is_whole = parameter is None or not isinstance(parameter.default, float)
    is_of_kind = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
    if not (is_of_kind and 0 < value < math.inf):
        raise ValueError(f"{name} must be a {'whole ' if is_whole else ''}number above 0, got {value!r}")


def _require_degree(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HIGHEST_DEGREE:
        raise ValueError(f"{name} must be a whole number from 0 to {HIGHEST_DEGREE}, got {value!r}")


def _require_degrees(count: Any, name: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST_DEGREES:
        raise ValueError(f"{name}: a network has 2 to {MOST_DEGREES} degrees, got {count!r}")


def _require_degree_list(value: Any, name: str) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list with one degree, as [6], got {value!r}")
    for degree in value:
        _require_degree(degree, name)


def _require_orders(settings: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for orders beyond the degree that they are orders of."""
    for degree, order in (("lmax", "mmax"), ("lmax_list", "mmax_list")):
        stated = settings.get(degree), settings.get(order)
        if None in stated:
            continue
        highest, orders = (value if isinstance(value, list) else [value] for value in stated)
        if len(highest) != len(orders) or any(own > most for most, own in zip(highest, orders, strict=True)):
            raise ValueError(
                f"{where}.{order} = {stated[1]} must be at most {where}.{degree} = {stated[0]}, and a list of as many "
                "numbers where that is a list"
            )
