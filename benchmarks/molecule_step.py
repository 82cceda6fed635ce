"""Time and memory of Equiformer's training step on molecules: this package beside the straightforward network.

    python benchmarks/molecule_step.py                                  # 8 ethanol, 8 of aspirin's size, one thread
    python benchmarks/molecule_step.py --threads 2 --molecules ethanol
    python benchmarks/molecule_step.py --profile                        # and what a step spends its time on

Contestants have the same weights; before anything is timed their predictions and gradients are compared.

- ``twin``: `equiformer_twin`, one e3nn tensor product for every product, with DeNS.
- ``dens``: `EquiformerDeNS` with both heads, on the same corrupted batch.
- ``plain``: `Equiformer` without DeNS, on the clean batch.

A round is one training step (forward, forces, loss, backward through the forces, AdamW) of each, one after the other,
in an order that rotates; a ratio is the median over rounds of the ratio within a round, with quartiles, so that what
else the machine does affects both sides. Memory is the kernel's high-water mark of resident pages (``VmHWM``) over two
steps in a fresh process, above what the process had before them; Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from equiformer_twin import EquiformerTwin
from fairchem.core.models.base import HydraModel
from machine import hardware
from timing import interleaved
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_geometric.data import Batch, Data

import dens_plugin.backbones.equiformer  # noqa: F401  (registers its names)
from dens_plugin.backbones.equiformer.keys import to_plugin_keys
from dens_plugin.compat import prepare_host
from dens_plugin.fields import CORRUPTION, NOISE, ROWS
from dens_plugin.objectives.dens import DeNS
from dens_plugin.objectives.noise import StructureRandom

GOALS = {("dens", "twin"): 1 / 1.5, ("dens", "plain"): 1.10}
NAMES = ("twin", "dens", "plain")
MOLECULES = ("ethanol", "aspirin_size")
_OBJECTIVE = DeNS(prob=0.25, corrupt_ratio=0.25)  # Table 9
_SIZES: dict[str, dict[str, Any]] = {
    "l2": {},  # the defaults are those of Table 4
    "mini": {
        "channels": [32, 16, 8],
        "head_channels": [8, 4, 2],
        "ffn_channels": [96, 48, 24],
        "feature_channels": [128, 64, 32],
        "num_layers": 3,
        "radial_channels": [32, 32],
    },
}
_IRREPS = {
    "irreps_node_embedding": "channels",
    "irreps_head": "head_channels",
    "irreps_mlp_mid": "ffn_channels",
    "irreps_feature": "feature_channels",
}
_EPOCHS = 200  # candidates among which the corruption of average size is looked for


class Sample(NamedTuple):
    """A batch as data sets give it, and prepared by `DeNS` with about p r of its atoms corrupted."""

    clean: Batch
    corrupted: Batch


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print the table and write everything to a file, whose path is returned."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    prepare_host()
    rows = [row for name in args.molecules for row in _measured(args, name)]
    report = {"settings": {**vars(args), "out": str(args.out)}, "hardware": hardware("cpu"), "table": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))
    print(markdown(rows))
    return args.out


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of ratios."""
    lines = ["| batch | measure | ratio | median | quartiles | goal |", "|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['batch']} | {row['measure']} | {row['ours']} / {row['other']} | {row['median']:.3f} "
            f"| {low:.3f} to {high:.3f} | {row['goal']:.2f} |"
        )
    return "\n".join(lines)


def draw_sample(name: str, size: int) -> Sample:
    """``size`` rattled molecules, and the same with about p r of their atoms corrupted."""
    rng = np.random.default_rng(0)
    structures = [_structure(_atoms(name), rng, index) for index in range(size)]
    clean = Batch.from_data_list(structures)
    wanted = (_OBJECTIVE.prob * (_OBJECTIVE.corrupt_ratio or 1)) * clean.num_nodes
    candidates = (_OBJECTIVE.prepare(clean, StructureRandom(0, epoch)) for epoch in range(_EPOCHS))
    return Sample(clean, min(candidates, key=lambda batch: abs(batch[CORRUPTION].mask.sum().item() - wanted)))


def build(size: str) -> dict[str, nn.Module]:
    """The contestants with equal weights."""
    settings = _SIZES[size]
    torch.manual_seed(0)
    twin = EquiformerTwin(**_twin_settings(settings))
    channels = settings.get("channels", [128, 64, 32])
    state = to_plugin_keys(twin.state_dict(), channels)
    dens = _hydra("equiformer_dens_plugin_backbone", settings, noise=True)
    dens.load_state_dict(state)
    plain = _hydra("equiformer_plugin_backbone", settings, noise=False)
    plain.load_state_dict(
        {name: state[name].view(-1)[: value.numel()].view_as(value) for name, value in plain.state_dict().items()}
    )
    return {"twin": twin, "dens": dens, "plain": plain}


def require_equal(models: dict[str, nn.Module], sample: Sample, tolerance: float = 1e-4) -> dict[str, float]:
    """The largest relative differences of outputs and parameter gradients between `twin` and `dens`.

    Raises:
        ValueError: if one is above ``tolerance``, which in float32 is far above rounding.
    """
    batch, names = sample.corrupted, ("twin", "dens")
    outputs = {name: models[name](batch) for name in names}
    for name in names:
        models[name].zero_grad()
        loss(outputs[name], batch).backward()
    masks = {"energy": slice(None), "forces": batch[ROWS]["forces"].mask, NOISE: batch[ROWS][NOISE].mask}
    found = {key: _difference(outputs["dens"][key][mask], outputs["twin"][key][mask]) for key, mask in masks.items()}
    norms = [_gradient_norm(models[name]) for name in names]
    found["gradient norm"] = _difference(norms[1], norms[0])
    if max(found.values()) > tolerance:
        raise ValueError(f"the contestants differ: {found}; nothing was measured")
    return found


def loss(out: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Of the shape of the trainer's: L2 norms with Table 9's coefficients, each mean over its own atoms."""
    total = (out["energy"] - batch.energy).abs().mean()
    rows = batch.get(ROWS, {})
    mask = rows["forces"].mask if rows else slice(None)
    total = total + 80 * (out["forces"] - batch.forces)[mask].norm(dim=-1).mean()
    if NOISE in out:
        mask = rows[NOISE].mask
        total = total + 5 * (out[NOISE] - batch[CORRUPTION].noise / 0.05)[mask].norm(dim=-1).mean()
    return total


def peak_memory(size: str, molecule_name: str, batch: int, *, name: str, threads: int) -> float:
    """MiB at the peak of two steps above what the process had before; for a process that has done nothing else."""
    torch.set_num_threads(threads)
    prepare_host()
    model, sample = build(size)[name], draw_sample(molecule_name, batch)
    step = stepper(model, sample.clean if name == "plain" else sample.corrupted)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    step(0)
    step(1)
    return (_resident("VmHWM") - before) / 1024


def stepper(model: nn.Module, batch: Batch) -> Callable[[int], None]:
    """A training step, given the number of its round."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(_round: int) -> None:
        optimizer.zero_grad()
        loss(model(batch), batch).backward()
        optimizer.step()

    return step


def _measured(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    models, sample = build(args.size), draw_sample(name, args.batch)
    differences = require_equal(models, sample)
    print(f"{name}: largest relative differences", {key: f"{value:.0e}" for key, value in differences.items()})
    steps = {key: stepper(m, sample.clean if key == "plain" else sample.corrupted) for key, m in models.items()}
    seconds = {key: np.array(values) for key, values in interleaved(steps, args.rounds, "cpu").items()}
    label = f"{args.batch} {name}, {args.threads} threads, {args.size}"
    print(label, {key: f"{1e3 * np.median(values):.0f} ms" for key, values in seconds.items()})
    rows = [_ratio(label, "step, s", pair, seconds) for pair in GOALS]
    if args.memory:
        peaks = {key: np.array([_in_fresh_process(args, name, key)]) for key in NAMES}
        print(label, {key: f"{values[0]:.0f} MiB" for key, values in peaks.items()})
        rows += [_ratio(label, "step, MiB", pair, peaks) for pair in GOALS]
    if args.profile:
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            steps["dens"](0)
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    return rows


def _ratio(label: str, measure: str, pair: tuple[str, str], costs: dict[str, np.ndarray]) -> dict[str, Any]:
    low, median, high = np.quantile(costs[pair[0]] / costs[pair[1]], [0.25, 0.5, 0.75]).tolist()
    return {
        "batch": label,
        "measure": measure,
        "ours": pair[0],
        "other": pair[1],
        "median": median,
        "quartiles": [low, high],
        "goal": GOALS[pair],
        "costs": {name: costs[name].tolist() for name in pair},
    }


def _in_fresh_process(args: argparse.Namespace, molecule_name: str, name: str) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_memory, args.size, molecule_name, args.batch, name=name, threads=args.threads).result()


def _resident(key: str) -> int:
    """KiB of this process, by the kernel's name for the figure."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _first(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Degree 0, which comes first, of a weight for all degrees; other weights are as they were."""
    return weight.flatten()[: like.numel()].view_as(like)


def _difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def _hydra(backbone: str, settings: dict[str, Any], *, noise: bool) -> HydraModel:
    heads = {"energy": {"module": "equiformer_gradient_head"}}
    if noise:
        heads["noise"] = {"module": "equiformer_noise_head"}
    return HydraModel(backbone={"model": backbone, **settings}, heads=heads, pass_through_head_outputs=True)


def _gradient_norm(model: nn.Module) -> torch.Tensor:
    """Of all parameters but the bias of the twin's force encoding, which here is part of another."""
    gradients = [
        p.grad for name, p in model.named_parameters() if p.grad is not None and "force_embed.bias" not in name
    ]
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()


def _twin_settings(settings: dict[str, Any]) -> dict[str, Any]:
    irreps = {
        theirs: "+".join(f"{count}x{degree}e" for degree, count in enumerate(settings[ours]))
        for theirs, ours in _IRREPS.items()
        if ours in settings
    }
    same = {"num_layers": "num_layers", "fc_neurons": "radial_channels"}
    return irreps | {theirs: settings[ours] for theirs, ours in same.items() if ours in settings}


def _atoms(name: str) -> Atoms:
    ethanol = molecule("CH3CH2OH")
    if name == "ethanol":
        return ethanol
    benzene = molecule("C6H6")  # with ethanol above it, 21 atoms as in aspirin
    ethanol.translate(benzene.get_center_of_mass() - ethanol.get_center_of_mass())
    ethanol.translate([0, 0, 3.5])
    return benzene + ethanol


def _structure(atoms: Atoms, rng: np.random.Generator, index: int) -> Data:
    pos = atoms.positions + rng.normal(scale=0.1, size=atoms.positions.shape)
    return Data(
        pos=torch.tensor(pos, dtype=torch.float32),
        atomic_numbers=torch.tensor(atoms.numbers),
        natoms=len(atoms),
        energy=float(rng.normal()),
        forces=torch.tensor(rng.normal(size=pos.shape), dtype=torch.float32),
        sid=index,
        fid=0,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(_SIZES), default="l2", help="of the network")
    parser.add_argument("--molecules", nargs="+", choices=MOLECULES, default=list(MOLECULES))
    parser.add_argument("--batch", type=int, default=8, help="molecules per batch")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each contestant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--profile", action="store_true", help="print what a step spends its time on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/molecule_step.json"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
