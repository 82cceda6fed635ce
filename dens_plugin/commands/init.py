"""`dens init`: a config for a data set and a model, made of the package's parts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dens_plugin.config_files import packaged_folder
from dens_plugin.data.check import check
from dens_plugin.data.output import require_makeable
from dens_plugin.data.scales import as_yaml
from dens_plugin.data.statistics import Statistics
from dens_plugin.settings import require_one_of

_NORMALIZERS = {"energy": "normalizer_energy.npz", "forces": "normalizer_forces.npz"}  # of `dens data molecules`
_SAMPLE = 2000  # structures that scales are computed from, where none are written
_SPLITS = {"train": ("train",), "val": ("val", "val_id", "valid", "validation"), "test": ("test", "val_ood")}


class Parts(NamedTuple):
    """What a config includes, by the package's names.

    Attributes:
        base: loss and metrics.
        model: the network with its heads.
        backbone: its size.
        objective: what is trained on.
        schedule: epochs, batch and learning rate.
    """

    base: str
    model: str
    backbone: str
    objective: str
    schedule: str


_MOLECULES = Parts("base_molecules.yml", "", "", "objective/dens_md17.yml", "schedule/md17_mini.yml")
_SLABS = Parts("base.yml", "", "", "objective/dens.yml", "schedule/mini.yml")
_PERIODIC: dict[str, Any] = {"model": {"backbone": {"use_pbc": True}}}
_ALWAYS_PERIODIC = ("equiformer_v2", "escn", "esen")  # by default
_DEMO = "demo_"  # how the names of its experiments begin
_SMALL = ("mini", "molecule")  # in the names of backbones that a CPU trains


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dens init`."""
    parser.add_argument(
        "data", type=Path, help="a folder with `train`, `val` and perhaps `test`, as `dens data molecules` writes it"
    )
    parser.add_argument("--model", default="equiformer_v2", help=f"one of {', '.join(models())} (default: %(default)s)")
    parser.add_argument("--backbone", help="its size, a config of `dens configs backbone`; a small one where there is")
    parser.add_argument(
        "--objective", help="a config of `dens configs objective`; s2ef trains without denoising (default: DeNS)"
    )
    parser.add_argument("--schedule", help="a config of `dens configs schedule`")
    parser.add_argument("--out", type=Path, default=Path("config.yml"), help="file to write (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write a config and say what to do with it.

    Raises:
        FileNotFoundError: if there are no data.
        ValueError: for an unknown part, data without forces, or a file that exists or cannot be made.
    """
    if args.out.exists():
        raise ValueError(f"'{args.out}' exists; give another --out")
    require_makeable(args.out)
    sources = _sources(args.data)
    defaults = _MOLECULES if (args.data / _NORMALIZERS["energy"]).exists() else _SLABS
    _require_parts(args)
    includes = list(choose_parts(args, defaults))
    numbers = check(sources["train"], limit=_SAMPLE).statistics
    if not numbers.free_forces.rms >= 0:  # NaN without any
        raise ValueError(
            f"'{sources['train']}' has no forces, which these configs train on: for energies alone begin with a copy "
            "of experiment/denoise_pretrain/torchmd_et_scratch.yml or of experiment/ndem_qm9 (`dens configs`)"
        )
    settings = _PERIODIC if args.model not in _ALWAYS_PERIODIC and any("T" in kind for kind in numbers.pbc) else {}
    text = config_text(includes, sources, _scales(args.data, numbers), settings)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out} is written. Train with it by\n")
    device = "" if torch.cuda.is_available() else " --cpu"
    print(f"dens train --config-yml {args.out}{device} --identifier {args.out.stem} --run-dir runs")


def _require_parts(args: argparse.Namespace) -> None:
    """Raise ValueError for a part that there is not, or a backbone of another network than the model's."""
    require_one_of(args.model, models(), "--model")
    allowed = {"backbone": _backbones(args.model), "objective": _stems("objective"), "schedule": _stems("schedule")}
    for option, names in allowed.items():
        name = getattr(args, option)
        if name is not None:
            require_one_of(name, names, f"--{option}" + (f" of {args.model}" if option == "backbone" else ""))


def choose_parts(args: argparse.Namespace, defaults: Parts) -> Parts:
    """The parts that were asked for, and the rest as in an experiment of the package with this model and kind of data.

    Where there is no such experiment, the defaults of this kind of data.
    """
    objective = f"objective/{args.objective}.yml" if args.objective else defaults.objective
    model = f"model/{_model_file(args.model, Path(objective).stem)}.yml"
    alike = [each for each in _experiments() if (each.base, each.model) == (defaults.base, model)]
    small = [each for each in alike if any(word in each.backbone for word in _SMALL)]
    fallback = defaults._replace(model=model)
    chosen = next(iter(small or alike), fallback)
    if not (args.backbone or chosen.backbone):
        chosen = chosen._replace(backbone=f"backbone/{_small_backbone(args.model)}.yml")
    asked = {"backbone": args.backbone, "objective": args.objective, "schedule": args.schedule}
    return chosen._replace(**{kind: f"{kind}/{name}.yml" for kind, name in asked.items() if name})


def _experiments() -> Iterator[Parts]:
    """The parts of the package's experiments that have one of each kind, the demo's cut short and last."""
    folder = packaged_folder()
    for path in sorted((folder / "experiment").rglob("*.yml"), key=lambda path: (path.name.startswith(_DEMO), path)):
        names = [
            str((path.parent / name).resolve().relative_to(folder))
            for name in (yaml.safe_load(path.read_text()) or {}).get("includes", ())
        ]
        parts = {name.split("/")[0] if "/" in name else "base": name for name in names}
        if set(Parts._fields) <= set(parts):
            yield Parts(*(parts[kind] for kind in Parts._fields))


def models() -> list[str]:
    """The models of the package without what an objective adds, such as ``equiformer_v2``."""
    stems = _stems("model")
    families = {stem.removesuffix(f"_{objective}") for stem in stems for objective in _objectives()}
    return sorted(stem for stem in families if not any(stem.endswith(f"_{name}") for name in _objectives()))


def config_text(
    includes: list[str], sources: Mapping[str, Path], scales: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """A config as a person would write it, with further settings at its end."""
    dataset: dict[str, Any] = {split: {"src": str(path)} for split, path in sources.items()}
    dataset["train"] = {"format": "lmdb", **dataset["train"], "transforms": {"normalizer": dict(scales)}}
    head = "# Written by `dens init`. `dens configs NAME` prints an included file; settings in this one replace its.\n"
    includes_text = "includes:\n" + "".join(f"  - {name}\n" for name in includes)
    return f"{head}{includes_text}\n{yaml.safe_dump({'dataset': dataset, **settings}, sort_keys=False)}"


def _sources(folder: Path) -> dict[str, Path]:
    """The splits in a folder; training and validation are needed."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; `dens data molecules` and `dens data oc20` make one")
    found = {
        split: path
        for split, names in _SPLITS.items()
        if (path := next((folder / name for name in names if (folder / name).exists()), None)) is not None
    }
    missing = [split for split in ("train", "val") if split not in found]
    if missing:
        raise FileNotFoundError(f"'{folder}' has no folder {' or '.join(_SPLITS[missing[0]])}")
    return found


def _scales(folder: Path, numbers: Statistics) -> dict[str, Any]:
    """A normaliser: the files that lie beside the data, else the numbers of a sample of them."""
    if all((folder / name).exists() for name in _NORMALIZERS.values()):
        return {target: {"file": str(folder / name)} for target, name in _NORMALIZERS.items()}
    return {
        "energy": {
            "mean": _rounded(numbers.energy.mean, numbers.energy_scale),
            "stdev": _rounded(numbers.energy_scale, numbers.energy_scale),
        },
        "forces": {"mean": 0.0, "stdev": _rounded(numbers.forces_scale, numbers.forces_scale)},
    }


def _rounded(value: float, scale: float) -> float:
    """A number of labels that deviate by a scale, as short as `dens data check` prints it."""
    return float(as_yaml(value, scale=scale))


def _objectives() -> set[str]:
    """Short names of objectives, the first word of their configs' names, but for the baseline's."""
    names = _stems("objective")
    return {min((other for other in names if name.startswith(other)), key=len) for name in names} - {"s2ef"}


def _model_file(model: str, objective: str) -> str:
    """The model with the heads that an objective needs.

    Raises:
        ValueError: if there is none, with the objectives that this model has heads for.
    """
    if (file := _file_for(model, objective)) is not None:
        return file
    possible = [name for name in _stems("objective") if _file_for(model, name) is not None]
    raise ValueError(
        f"the package has no config of '{model}' for the objective '{objective}': give --objective, one of "
        f"{', '.join(possible)}"
    )


def _file_for(model: str, objective: str) -> str | None:
    special = [name for name in _objectives() if objective.startswith(name)]
    known = _stems("model")
    names = (*(f"{model}_{each}" for each in special), *([] if special else [model]))
    return next((name for name in names if name in known), None)


def _stems(kind: str) -> list[str]:
    """The package's configs of a kind, without their endings."""
    return sorted(path.stem for path in (packaged_folder() / kind).glob("*.yml"))


def _small_backbone(model: str) -> str:
    """The first backbone of a model by name, one called mini before others."""
    own = _backbones(model)
    return next((stem for stem in own if "mini" in stem), own[0])


def _backbones(model: str) -> list[str]:
    """The backbones of a model by name; esen_mini is of esen_gradient too."""
    words = model.split("_")
    families = ["_".join(words[:length]) for length in range(len(words), 0, -1)]
    own = ([stem for stem in _stems("backbone") if _is_of(stem, family)] for family in families)
    return next(filter(None, own))


def _is_of(backbone: str, family: str) -> bool:
    return _begins(backbone, family) and not _is_of_another(backbone, family)


def _begins(name: str, family: str) -> bool:
    return name == family or name.startswith(f"{family}_")


def _is_of_another(name: str, family: str) -> bool:
    """Whether a longer model name fits as well, as equiformer_v2 does where equiformer does."""
    return any(_begins(name, other) and len(other) > len(family) for other in models())
