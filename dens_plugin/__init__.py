"""DeNS for fairchem-core: training equivariant force fields with denoising of non-equilibrium structures.

Reference: Liao, Smidt, Shuaibi and Das, "Generalizing Denoising to Non-Equilibrium Structures Improves Equivariant
Force Fields", arXiv:2403.09549.

Importing this package is quick and needs neither torch nor fairchem-core. The public names below are loaded on first
use, which also registers the short names (``dens``, ``equiformer_v2_dens``, ...) in fairchem's registry; a dotted path
such as ``dens_plugin.DeNSTrainer`` in a YAML file is such a use.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import dens_plugin.stand_ins  # noqa: F401  (its import makes fairchem-core importable without torch-scatter)

__version__ = "0.2.0"

# fairchem reads its own constants by torch.load at every import; five lines of warning for each of three files.
warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning, module=r"fairchem\.core\.")

_HOMES = {
    "DeNSTrainer": "dens_plugin.training.trainer",
    "DeNS": "dens_plugin.objectives.dens",
    "load_calculator": "dens_plugin.inference.calculator",
}
_OPEN_TO_MORE = ("backbones", "objectives")  # whose files and folders offer what they list in `__all__`
_LISTED = re.compile(r"^__all__ = (\[.*?\])", re.MULTILINE | re.DOTALL)


@functools.cache
def _homes() -> dict[str, str]:
    """Public name -> module, by the text of files: none is imported, and a new one adds its names by being there."""
    homes = dict(_HOMES)
    for part in _OPEN_TO_MORE:
        for path in sorted((Path(__file__).parent / part).iterdir()):
            file = path / "__init__.py" if path.is_dir() else path
            listed = _LISTED.search(file.read_text()) if file.suffix == ".py" and file.is_file() else None
            if listed and path.stem != "__init__":
                homes |= dict.fromkeys(ast.literal_eval(listed[1]), f"{__name__}.{part}.{path.stem}")
    return homes


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    public = ["__version__", *_homes()]
    if name == "__all__":
        return public
    if name not in public:
        raise AttributeError(f"module 'dens_plugin' has no attribute '{name}'; it offers {', '.join(public)}")
    importlib.import_module("dens_plugin.compat").prepare_host()
    return getattr(importlib.import_module(_homes()[name]), name)
