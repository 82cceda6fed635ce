"""Config files: where they are, which ones come with the package, and which files one is made of. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from dens_plugin.settings import suggestion

_PACKAGE = Path(__file__).resolve().parent


def packaged_folder() -> Path:
    """The folder ``configs`` of a checkout, or the one inside an installed package."""
    checkout = _PACKAGE.parent / "configs"
    return checkout if checkout.is_dir() else _PACKAGE / "configs"


def packaged_names() -> list[str]:
    """The files in it, such as ``experiment/demo_dens.yml``."""
    folder = packaged_folder()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yml"))


def summary(path: Path) -> str:
    """The first sentence of the comment at the top of a config."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).partition(". ")[0].rstrip(".")


def find_config(name: str | Path) -> Path:
    """A config by its path, or else by its name among those of the package, with or without ``configs/`` before it.

    Raises:
        FileNotFoundError: if there is no such file, with the most similar name.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = packaged_folder() / path.relative_to("configs") if path.parts[:1] == ("configs",) else None
    for candidate in (packaged, packaged_folder() / path):
        if candidate is not None and candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(f"'{name}' is a folder; name a config file in it")
    hint = suggestion(str(path), packaged_names())
    hint = hint if hint.startswith("did you") else "`dens configs` lists those of the package"
    raise FileNotFoundError(f"there is no config file '{name}'; {hint}")


def find_include(name: str, folder: Path) -> Path | None:
    """A file that a config in ``folder`` includes: by its path, beside the config, or in the package, in this order.

    None if it is nowhere.
    """
    for candidate in (Path(name), folder / name):
        if candidate.exists():
            return candidate
    try:
        return find_config(name)
    except FileNotFoundError:
        return None
