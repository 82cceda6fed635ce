"""Options of fairchem's command line that end in a traceback there."""

from __future__ import annotations

import pytest
from fairchem.core.common.flags import flags

from dens_plugin.checks.options import require_options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("print-every", 0, "--print-every must be at least 1: it is a number of steps; got 0"),
        ("num-gpus", 0, "--num-gpus must be at least 1: it is the number of processes, on a CPU too; got 0"),
        ("num-nodes", 0, "--num-nodes must be at least 1; got 0"),
        ("gp-gpus", 0, "--gp-gpus must be at least 1; got 0"),
        ("seed", -1, "--seed must be at least 0; got -1"),
    ],
)
def test_numbers(option, value, message):
    parser = flags.get_parser()
    args, overrides = parser.parse_known_args(["--config-yml", "c.yml", f"--{option}", str(value)])
    with pytest.raises(ValueError, match=message):
        require_options(args, overrides, parser)


def test_defaults_pass():
    parser = flags.get_parser()
    require_options(*parser.parse_known_args(["--config-yml", "c.yml", "--optim.max_epochs=3"]), parser)
