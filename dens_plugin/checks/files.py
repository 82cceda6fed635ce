"""The files of a config, looked at before fairchem reads them: each a block of settings, each found, none twice.

Only YAML is needed for it, so that a slip in a path is told at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dens_plugin.config_files import find_include, packaged_names
from dens_plugin.settings import suggestion

INCLUDES = "includes"


class ConfigFile(NamedTuple):
    """A file of a config and the settings in it, without those of the files that it includes."""

    path: Path
    settings: Mapping[str, Any]

    def has(self, keys: Sequence[str | int]) -> bool:
        """Whether a setting, named block by block, stands in this file."""
        value: Any = self.settings
        for key in keys:
            holds = isinstance(value, Mapping) and key in value
            if not holds and not (isinstance(value, list) and isinstance(key, int) and key < len(value)):
                return False
            value = value[key]
        return True


def config_files(path: Path) -> list[ConfigFile]:
    """A config's own file, and all that it includes.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for one that holds no settings, whose ``includes`` are no list of files, or set the same twice.
    """
    return list(_walk(Path(path), by=()))


def _walk(path: Path, by: tuple[Path, ...], name: str | None = None) -> Iterator[ConfigFile]:
    included = f", which {by[-1]} includes" if by else ""
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file '{path}'{included}{_neighbour(path, name)}")
    if path.resolve() in [other.resolve() for other in by]:
        raise ValueError(f"the config file '{path}' includes itself, by way of {by[-1]}: leave one of them out")
    settings = _settings(path, included)
    yield ConfigFile(path, {key: value for key, value in settings.items() if key != INCLUDES})
    names = settings.get(INCLUDES, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        example = names if isinstance(names, str) else "common.yml"
        raise ValueError(f"`includes` of '{path}' must be a list of files, as `includes: [{example}]`; got {names!r}")
    owners: dict[str, str] = {}  # setting -> the included file that has it
    for name in names:
        included_files = list(_walk(find_include(name, path.parent) or path.parent / name, (*by, path), name))
        _require_apart(included_files, name, owners, path)
        yield from included_files


def _require_apart(files: Iterable[ConfigFile], name: str, owners: dict[str, str], path: Path) -> None:
    """Raise ValueError for a setting that an earlier file of the same ``includes`` has too; else note whose it is."""
    own = sorted({setting for file in files for setting in _settings_in(file.settings)})
    twice = [setting for setting in own if setting in owners]
    if twice:
        raise ValueError(
            f"'{path}' includes '{owners[twice[0]]}' and '{name}', which both set {', '.join(twice[:3])}"
            f"{f' and {len(twice) - 3} more' if len(twice) > 3 else ''}: include one of them, or one from within the "
            "other, whose own settings then count"
        )
    owners |= dict.fromkeys(own, name)


def _settings_in(block: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Dotted names of all settings of a block."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _settings_in(value, f"{where}{key}.")
        else:
            yield f"{where}{key}"


def _settings(path: Path, included: str) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the config file '{path}'{included} is no YAML: {error}") from error
    if settings is None:
        raise ValueError(f"the config file '{path}'{included} is empty; configs/experiment has examples")
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"the config file '{path}'{included} must hold blocks of `key: value` lines, got {str(settings)[:60]!r}"
        )
    return settings


def _neighbour(path: Path, name: str | None) -> str:
    """A file of nearly this name in the same folder, or of the package."""
    names = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = suggestion(path.name, names)
    if "did you mean" not in hint and name is not None:
        hint = suggestion(name.removeprefix("configs/"), packaged_names())
    return f"; {hint}" if "did you mean" in hint else ""
