"""What is wrong with a file of a config is told with the file's name, before fairchem reads it."""

from __future__ import annotations

import pytest

from dens_plugin.checks.files import config_files
from dens_plugin.checks.schema import ignored_options


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.yml").write_text(text)
    return folder / "a.yml"


def test_own_settings_come_first_then_those_of_what_is_included(tmp_path):
    path = write(tmp_path, a="includes: [b.yml]\noptim: {x: 1}", b="includes: [c.yml]", c="task: {y: [{z: 2}]}")
    files = config_files(path)
    assert [file.path.name for file in files] == ["a.yml", "b.yml", "c.yml"]
    assert files[0].settings == {"optim": {"x": 1}}
    assert files[2].has(("task", "y", 0, "z"))
    assert not files[2].has(("task", "y", 1, "z"))
    assert not files[2].has(("task", "y", 0, "z", "more"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": ""}, r"the config file '.*a.yml' is empty"),
        ({"a": "# nothing but a comment\n"}, r"a.yml' is empty"),
        ({"a": "includes: [b.yml]", "b": ""}, r"b.yml', which .*a.yml includes is empty"),
        ({"a": "just text"}, r"a.yml' must hold blocks of `key: value` lines, got 'just text'"),
        ({"a": "includes: b.yml", "b": "x: 1"}, r"`includes` of '.*a.yml' must be a list .*`includes: \[b.yml\]`"),
        ({"a": "includes: [{b: 1}]"}, r"`includes` of '.*a.yml' must be a list of files"),
        ({"a": "includes:"}, r"`includes` of '.*a.yml' must be a list of files"),
        ({"a": "includes: [b.yml]", "b": "includes: [a.yml]"}, r"a.yml' includes itself, by way of .*b.yml"),
        ({"a": "x: [1"}, r"a.yml' is no YAML"),
    ],
)
def test_what_is_no_config(texts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config_files(write(tmp_path, **texts))


def test_a_missing_file_and_its_neighbour(tmp_path):
    path = write(tmp_path, a="includes: [comon.yml]", common="x: 1")
    message = r"no config file '.*comon.yml', which .*a.yml includes; did you mean 'common.yml'\?"
    with pytest.raises(FileNotFoundError, match=message):
        config_files(path)


def test_a_missing_file_of_the_package(tmp_path):
    path = write(tmp_path, a="includes: [objective/denz.yml]")
    with pytest.raises(FileNotFoundError, match=r"denz.yml', which .*; did you mean 'objective/dens.yml'\?"):
        config_files(path)


def test_two_included_files_that_set_the_same(tmp_path):
    path = write(tmp_path, a="includes: [b.yml, c.yml]", b="x: {y: 1, z: 2}", c="includes: [d.yml]", d="x: {y: 3}")
    with pytest.raises(ValueError, match=r"a.yml' includes 'b.yml' and 'c.yml', which both set x.y: include one of"):
        config_files(path)
    assert len(config_files(write(tmp_path, d="x: {w: 3}"))) == 4


def test_settings_that_the_command_line_replaces(tmp_path):
    path = write(tmp_path, a="includes: [b.yml]\nis_debug: true", b="seed: 3\namp: true")
    told = list(ignored_options(config_files(path)))
    assert [text.partition(": ")[2] for text in told] == [
        "give --debug on the command line",
        "give --seed on the command line",
        "give --amp on the command line",
    ]
    assert "`seed` in" in told[1]
    assert "b.yml" in told[1]
