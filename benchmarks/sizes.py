"""Hyper-parameters of the networks that are measured, from the files that training reads.

| ``--size`` | file | layers, degree, order |
|---|---|---|
| 83m | `configs/backbone/equiformer_v2_83m.yml` | 12, 6, 2 |
| 122m | `configs/backbone/equiformer_v2_122m.yml` | 18, 6, 2; all neighbours as near as the 20th |
| 153m | `configs/backbone/equiformer_v2_153m.yml` | 20, 6, 3 |

They are those of the DeNS paper (arXiv:2403.09549, Tables 7 and 8). eSCN's are those of its own paper
(arXiv:2302.03655), `configs/backbone/escn_l6.yml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairchem.core.common.utils import load_config

SIZES = ("83m", "122m", "153m")

_FOLDER = Path(__file__).parents[1] / "configs" / "backbone"
_DEGREE = "lmax_list"

Settings = dict[str, Any]


def paper_settings(
    model: str, *, size: str = "83m", lmax: int | None = None, layers: int | None = None, channels: int = 128
) -> Settings:
    """Hyper-parameters of the backbone.

    Args:
        model: ``equiformer_v2`` or ``escn``.
        size: of EquiformerV2, one of `SIZES`.
        lmax: another degree than the paper's, with a grid in proportion.
        layers: another number of layers.
        channels: fewer than the paper's 128 make a toy for tests.
    """
    settings = _from_file("escn_l6.yml" if model == "escn" else f"equiformer_v2_{size}.yml")
    for name in settings:
        if name.endswith("_channels"):
            settings[name] = min(settings[name], 2 * channels if name == "hidden_channels" else channels)
    if lmax is not None and [lmax] != settings[_DEGREE]:
        settings |= {_DEGREE: [lmax], "mmax_list": [min(lmax, *settings["mmax_list"])]}
        settings |= {"grid_resolution": 2 * lmax + 6} if "grid_resolution" in settings else {}
    if layers is not None:
        settings["num_layers"] = layers
    return settings


def _from_file(name: str) -> Settings:
    config, *_ = load_config(str(_FOLDER / name))
    return {"otf_graph": True, **config["model"]["backbone"]}
