import json

import pytest
from samples import write_lmdb

from dens_plugin.testing import random_structure


@pytest.fixture
def pipeline(load):
    return load("pipeline")


@pytest.fixture
def data(tmp_path):
    return write_lmdb(tmp_path / "data", [random_structure(5, seed=index, sid=index) for index in range(40)])


def test_measures_all_three_parts(pipeline, data, tmp_path):
    options = ["--batch=2", "--rounds=3", "--turns=1", "--millions=1", "--saves=1"]
    path = pipeline.main([f"--data={data}", f"--out={tmp_path}", f"--folder={tmp_path}", *options])
    report = json.loads(path.read_text())
    assert report["loader"]["atoms per structure"] == 5
    assert report["checkpoint"]["file, GB"] == pytest.approx(4 * 4e6 / 1e9, rel=0.05)
    assert report["ranks"]["structures/s, 2 ranks"] > 0


def test_says_how_to_make_missing_data(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--data=nowhere", "--only=loader"])
    assert "there is no folder 'nowhere'" in capsys.readouterr().err
