"""Time of a training step of light networks on a CPU core: with DeNS beside without it, ET beside TorchMD-NET's own.

    python benchmarks/light_step.py dens --networks painn torchmd_et_mini
    pip install ".[torchmd]" && python benchmarks/light_step.py torchmd

``dens`` goes through the trainer, on eight molecules of the malonaldehyde that comes with this package: a step is all
between two batches, with loading, corruption, forces as gradients, their backward pass, optimiser, averages and
metrics. ``torchmd`` has both networks as on MD17 with one set of weights, the same batch and loss, and AdamW; what they
predict is compared first. Steps are taken in turn; a ratio is the median over pairs, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.build import molecule
from fairchem.core.models.base import HydraModel
from gain_methods import METHODS, NETWORKS
from gain_runs import Study, cell_of
from machine import hardware
from step_of_checkouts import Stepper, in_turn
from timing import interleaved
from torch import nn
from torch_geometric.data import Batch, Data

import dens_plugin.backbones.torchmd_et  # noqa: F401  (registers its names)
from dens_plugin.backbones.torchmd_et.keys import to_plugin_keys

_ROOT = Path(__file__).resolve().parent.parent
_MOLECULE, _FRAMES = "malonaldehyde", 100
_LARGEST = 1e-4  # relative difference of two networks with the same weights
_MD17 = {  # TorchMD-NET's names
    "model": "equivariant-transformer",
    "embedding_dimension": 128,
    "num_layers": 6,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "neighbor_embedding": True,
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "max_z": 100,
    "max_num_neighbors": 32,
    "attn_activation": "silu",
    "num_heads": 8,
    "distance_influence": "both",
    "derivative": True,
    "atom_filter": -1,
    "prior_model": None,
    "output_model": "Scalar",
    "reduce_op": "add",
    "precision": 32,
    "vector_cutoff": False,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each pair and, if asked to, write a file."""
    args = _arguments(argv)
    torch.set_num_threads(1)
    if args.pair == "dens":
        rows = {network: with_and_without(network, args.method, args.steps) for network in args.networks}
    else:
        rows = {"torchmd_et": beside_torchmd(args.steps)}
    for network, row in rows.items():
        print(f"{network}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"hardware": hardware("cpu"), "rows": rows}, indent=1) + "\n")


def with_and_without(network: str, method: str, steps: int) -> dict[str, float]:
    """Steps of a network with a method and without any, through the trainer."""
    with tempfile.TemporaryDirectory() as name:
        study, steppers = Study(Path(name), Path(name)), {}
        for each in (method, "s2ef"):
            cell = cell_of(_MOLECULE, _FRAMES, network, each, 0, 1_000_000)
            source, config = study.folder / "data" / f"{_MOLECULE}-{_FRAMES}-s0", study.folder / f"{each}.yml"
            if not source.exists():
                data = ["data", "molecules", f"shipped:{_MOLECULE}", source, "--split", f"{_FRAMES},50", "--quiet"]
                subprocess.run([sys.executable, "-m", "dens_plugin.cli", *map(str, data)], check=True)
            config.write_text(yaml.safe_dump(study.config(cell)))
            options = ["--mode", "train", "--cpu", "--config-yml", config, "--run-dir", study.folder / each]
            steppers[each] = Stepper(_ROOT, [*map(str, options), "--optim.eval_every=1000000"])
        return in_turn(steppers, steps)


def beside_torchmd(steps: int) -> dict[str, float]:
    """Steps of this package's ET and of TorchMD-NET's, and by how much they differ.

    Raises:
        ValueError: if they do not compute the same.
    """
    try:
        from torchmdnet.models.model import create_model
    except ImportError as error:
        raise SystemExit(f'TorchMD-NET cannot be imported ({error}); pip install ".[torchmd]"') from error
    torch.manual_seed(0)
    theirs, batch = create_model(dict(_MD17)), _batch()
    heads = {"energy": {"module": "torchmd_et_gradient_head"}}
    ours = HydraModel({"model": "torchmd_et_plugin_backbone"}, heads, pass_through_head_outputs=True)
    ours.load_state_dict(to_plugin_keys(theirs.state_dict()))

    def of_theirs() -> tuple[torch.Tensor, torch.Tensor]:
        energy, forces = theirs(batch.atomic_numbers, batch.pos, batch.batch)
        return energy.view(-1), forces

    def of_ours() -> tuple[torch.Tensor, torch.Tensor]:
        out = ours(batch)
        return out["energy"].view(-1), out["forces"]

    pairs = zip(("energies", "forces"), of_ours(), of_theirs(), strict=True)
    apart = {name: ((one - other).abs().max() / other.abs().max()).item() for name, one, other in pairs}
    if not max(apart.values()) < _LARGEST:
        raise ValueError(f"the networks differ: {apart}; nothing was measured")
    seconds = interleaved(
        {"torchmd-net": _step(theirs, of_theirs, batch), "ours": _step(ours, of_ours, batch)}, steps, "cpu"
    )
    low, median, high = statistics.quantiles(
        [other / one for other, one in zip(seconds["torchmd-net"], seconds["ours"], strict=True)], n=4
    )
    medians = {f"{name}, ms": 1000 * statistics.median(values) for name, values in seconds.items()}
    ratios = {"torchmd-net / ours": median, "lower quartile": low, "upper quartile": high}
    return medians | ratios | {f"{name} differ by": value for name, value in apart.items()}


def _step(model: nn.Module, predict: Any, batch: Batch) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(_round: int) -> None:
        optimizer.zero_grad()
        energy, forces = predict()
        ((energy - batch.energy).abs().mean() + 80 * (forces - batch.forces).norm(dim=-1).mean()).backward()
        optimizer.step()

    return step


def _batch() -> Batch:
    """Eight ethanol molecules whose atoms are moved by 0.1 Å."""
    atoms = molecule("CH3CH2OH")
    pos, numbers = torch.tensor(atoms.positions, dtype=torch.float32), torch.tensor(atoms.numbers)
    torch.manual_seed(0)
    return Batch.from_data_list(
        [
            Data(
                pos=pos + 0.1 * torch.randn_like(pos),
                atomic_numbers=numbers,
                natoms=len(numbers),
                energy=float(torch.randn(())),
                forces=torch.randn_like(pos),
            )
            for _ in range(8)
        ]
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=("dens", "torchmd"), help="what is compared")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["painn"], help="of dens")
    parser.add_argument("--method", choices=METHODS, default="dens_p75", help="of dens, beside s2ef")
    parser.add_argument("--steps", type=int, default=200, help="of each")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
