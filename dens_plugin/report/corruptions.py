"""Pictures of structures before and after corruption, as the objective of a run moves them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.symbols import Symbols
from ase.utils import rotate
from fairchem.core.datasets import data_list_collater
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle

from dens_plugin.cells import LEAST_VOLUME, volume
from dens_plugin.data.layout import completed
from dens_plugin.data.structures import Structure, from_data
from dens_plugin.fields import corruption_of
from dens_plugin.figure_style import STYLE
from dens_plugin.objectives.noise import StructureRandom
from dens_plugin.report.predictions import evenly

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from torch_geometric.data import Data

    from dens_plugin.objectives.base import Objective

_DRAWS = 3  # of a structure
_EPOCHS = 50  # looked at for draws in which it moves
_SLAB_VIEW = "-75x,-15y,4z"  # from the side and slightly from above, the surface on top
_PANEL = 1.75  # width in inches
_RADIUS = 0.8  # of a covalent radius
_VACUUM = 6.0  # Å without atoms along a cell's vector: it has no neighbours beyond
_CANDIDATES = 200  # structures looked at for different compositions


class _Style(NamedTuple):
    """How a set of atoms is drawn.

    Attributes:
        opacity: of the discs.
        edge: colour of their outline.
        width: of the outline, in points.
    """

    opacity: float
    edge: str
    width: float


class _Draw(NamedTuple):
    """A structure as an objective moved it.

    Attributes:
        epoch: of the draw, from 0.
        positions: (N, 3) Å.
    """

    epoch: int
    positions: np.ndarray


_SOLID = _Style(1.0, "0.15", 0.5)
_GHOST = _Style(0.35, "0.5", 0.4)


@matplotlib.rc_context(STYLE)
def corrupted_structures(dataset: Dataset, objective: Objective, *, rows: int = 3, seed: int = 0) -> Figure | None:
    """A row per structure: as it is, then as the objective moves it in the first epochs in which it does.

    Args:
        dataset: of fairchem; its structures may or may not be periodic.
        objective: any one.
        rows: how many structures.
        seed: of the run, so that these are draws that it trains on.

    Returns:
        None if the objective moves none of them.
    """
    chosen = [(data, list(_draws(data, objective, seed))) for data in _different(dataset, rows)]
    chosen = [(data, draws) for data, draws in chosen if draws]
    if not chosen:
        return None
    originals = [from_data(data) for data, _ in chosen]
    figure, panels = _canvas(originals, columns=1 + _DRAWS)
    for (_, draws), original, row in zip(chosen, originals, panels, strict=True):
        _draw(row[0], original, original.positions)
        row[0].set_title("original" if original is originals[0] else "")
        for panel, draw in zip(row[1:], draws, strict=False):
            _draw(panel, original, draw.positions)
            panel.set_title(f"epoch {draw.epoch + 1}")
        for panel in row[1 + len(draws) :]:
            panel.axis("off")
    for panel, original in zip(panels[:, 0], originals, strict=True):
        place = {"transform": panel.transAxes, "rotation": 90, "ha": "right", "va": "center"}
        panel.text(-0.04, 0.5, _formula(original), **place)
    return figure


def _canvas(structures: Sequence[Structure], *, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure and its panels, a row of fitting height per structure."""
    boxes = map(_box, structures)
    heights = [_PANEL * min(max((high[1] - low[1]) / (high[0] - low[0]), 0.6), 1.9) for low, high in boxes]
    figure = Figure(
        figsize=(_PANEL * columns, sum(heights) + 0.35),
        layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.04, wspace=0.0, hspace=0.02),
    )
    return figure, figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)


def _different(dataset: Dataset, most: int) -> list[Data]:
    """Up to ``most`` structures, first those of different compositions."""
    seen: dict[str, Data] = {}
    others = []
    for at in evenly(len(dataset), _CANDIDATES):
        data = dataset[at]
        formula = _formula(from_data(data))
        others.append(data) if formula in seen else seen.update({formula: data})
        if len(seen) == most:
            break
    return [*seen.values(), *others][:most]


def _draws(data: Data, objective: Objective, seed: int) -> Iterator[_Draw]:
    """The first draws in which atoms move; of a method that copies structures those of the copy, which comes last."""
    batch = data_list_collater([completed(data)], otf_graph=True)
    found = 0
    for epoch in range(_EPOCHS):
        prepared = objective.corrupt(batch, StructureRandom(seed, epoch))
        corruption = corruption_of(prepared)
        if corruption is not None and corruption.mask[-len(data.pos) :].any():
            yield _Draw(epoch, prepared.pos[-len(data.pos) :].cpu().numpy())
            found += 1
        if found == _DRAWS:
            return


def _draw(panel: Axes, original: Structure, moved: np.ndarray) -> None:
    """Atoms at ``moved`` (N, 3) Å in front of the lighter ones at their original places, in the structure's view."""
    turn = _view(original)
    for edge in _cell_edges(original):
        panel.plot(*(edge @ turn)[:, :2].T, color="0.6", lw=0.6, zorder=0)
    places = moved @ turn
    if not np.array_equal(moved, original.positions):
        _discs(panel, original, original.positions @ turn, style=_GHOST, order=1)
    _discs(panel, original, places, style=_SOLID, order=2)
    low, high = _box(original)  # one frame for a whole row, with room for atoms that moved
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    panel.axis("off")


def _discs(panel: Axes, structure: Structure, places: np.ndarray, *, style: _Style, order: int) -> None:
    """Discs at ``places`` (N, 3) Å in the picture's frame, those in front last; fixed atoms paler."""
    for at in np.argsort(places[:, 2]):
        if style is _GHOST and structure.fixed[at]:
            continue
        number = structure.numbers[at]
        colour = jmol_colors[number]
        colour = 0.45 * colour + 0.55 if structure.fixed[at] else colour
        disc = Circle(
            (places[at, 0], places[at, 1]),
            _RADIUS * covalent_radii[number],
            facecolor=(*colour, style.opacity),
            edgecolor=style.edge,
            linewidth=style.width,
            zorder=order,
        )
        panel.add_patch(disc)


def _cell_edges(structure: Structure) -> Iterator[np.ndarray]:
    """(2, 3) ends in Å of the cell's edges along its periodic vectors; a vector with vacuum along it is left out."""
    cell = structure.cell
    if not structure.pbc.any() or volume(cell) < LEAST_VOLUME:
        return
    fractions = structure.positions @ np.linalg.inv(cell)
    gaps = (1 - np.ptp(fractions, axis=0)) * np.linalg.norm(cell, axis=1)
    drawn = [axis for axis in range(3) if structure.pbc[axis] and gaps[axis] < _VACUUM]
    corner = sum((fractions[:, axis].min() * cell[axis] for axis in range(3) if axis not in drawn), start=np.zeros(3))
    for axis in drawn:
        others = [other for other in drawn if other != axis]
        for steps in itertools.product((0, 1), repeat=len(others)):
            start = corner + sum((step * cell[other] for step, other in zip(steps, others, strict=True)), np.zeros(3))
            yield np.stack([start, start + cell[axis]])


def _view(structure: Structure) -> np.ndarray:
    """(3, 3), what positions are multiplied by: slabs from the side, molecules with their longest axes in the plane."""
    if structure.pbc.any():
        return rotate(_SLAB_VIEW)
    axes = np.linalg.svd(structure.positions - structure.positions.mean(axis=0))[2].T
    return axes * (1.0, 1.0, np.linalg.det(axes))  # no mirror image


def _box(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the picture in Å, (2,) each."""
    points = np.concatenate([structure.positions, *_cell_edges(structure)])
    places = (points @ _view(structure))[:, :2]
    margin = 0.6 + _RADIUS * covalent_radii[structure.numbers].max()
    return places.min(axis=0) - margin, places.max(axis=0) + margin


def _formula(structure: Structure) -> str:
    """The composition with Matplotlib's subscripts, metals first."""
    return format(Symbols(structure.numbers).formula.convert("metal"), "latex")
