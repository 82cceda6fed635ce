import json
import math

import pytest


@pytest.fixture
def scaling(load):
    return load("scaling")


def test_table_plot_and_file_hold_every_point(scaling, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "SMALL", scaling.Point(width=2, neighbours=5, lmax=1, layers=1, channels=8))
    monkeypatch.setattr(scaling, "SMALL_AXES", {"width": (2, 3), "layers": (1, 2)})
    path = scaling.main(["--rounds=1", "--threads=1", f"--out={tmp_path}"])
    report = json.loads(path.read_text())
    assert report["failures"] == {}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [(row["axis"], row["value"]) for row in report["rows"][::2]] == [
        ("atoms", 18),
        ("atoms", 38),
        ("layers", 1),
        ("layers", 2),
    ]
    assert report["rows"][0]["costs"] == report["rows"][4]["costs"]  # the base point, measured once
    printed = capsys.readouterr().out
    assert all(
        f"| {axis} | {cost} |" in printed for axis in ("atoms", "layers") for cost in ("step, s", "inference, s")
    )


def test_axes_differ_from_the_base_in_one_number(scaling):
    for base, axes in ((scaling.SMALL, scaling.SMALL_AXES), (scaling.PAPER, scaling.PAPER_AXES)):
        assert axes.keys() == base._asdict().keys()
        for axis, point in scaling.points(base, axes):
            assert point._replace(**{axis: getattr(base, axis)}) == base


def test_base_of_the_full_run_is_the_paper_s_network(scaling):
    assert scaling.PAPER.settings() == scaling.paper_settings("equiformer_v2", size="83m")


def test_exponent(scaling):
    assert scaling.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert math.isnan(scaling.exponent([3], [1.0]))
