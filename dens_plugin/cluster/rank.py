"""One process of a run, of perhaps several."""

from __future__ import annotations

from typing import Any

from fairchem.core import _cli

from dens_plugin.log_lines import bars_on_terminals_only, set_up_logging


def run_rank(config: dict[str, Any]) -> None:
    """Do what a config asks for, as one rank of perhaps several, in this process."""
    set_up_logging()
    bars_on_terminals_only()
    _cli.Runner()(config)
