"""Site files: the shipped ones, what becomes of them in sbatch's options, and slips."""

from __future__ import annotations

import pytest
import yaml
from cluster_samples import ROOT

from dens_plugin.cluster.sites import Shape, Site, read_site, sbatch_options
from dens_plugin.cluster.submit import Executor

SHIPPED = sorted((ROOT / "slurm").glob("*.yml"))


def script(site, shape, runs=1, workers=2):
    executor = Executor("/nowhere/slurm", max_num_timeout=site.requeues)
    executor.update_parameters(**site.parameters(shape, name="sweep", workers=workers))
    return executor.script(runs)


def read(tmp_path, **block):
    path = tmp_path / "site.yml"
    path.write_text(yaml.safe_dump(block))
    return read_site(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file(path):
    site = read_site(path)
    assert path.read_text().startswith("# ")
    assert "#SBATCH --requeue" in script(site, Shape(2, site.gpus_per_node))


def test_what_sbatch_is_told():
    text = script(read_site(ROOT / "slurm" / "volta32gb.yml"), Shape(4, 8), runs=3)
    for option in (
        "array=0-2%3",
        "constraint=volta32gb",
        "nodes=4",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=4320",
        "signal=USR2@300",
        "mem=491520M",
        "job-name=sweep",
        "open-mode=append",
        "output=/nowhere/slurm/%A_%a_0_log.out",
    ):
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "--cpus-per-task=9 --kill-on-bad-exit=1" in text  # srun's own, which it does not take from sbatch


def test_a_gpu_type_is_named():
    assert "--gpus-per-node=a100:2\n" in script(Site(gpus_per_node=4, gpu_type="a100"), Shape(1, 2))


def test_without_gpus_one_process_per_node():
    text = script(Site(), Shape(2, 0))
    assert "--ntasks-per-node=1\n" in text
    assert "gpus" not in text


def test_cpus_follow_the_loader_unless_given():
    assert "--cpus-per-task=5\n" in script(Site(), Shape(1, 0), workers=4)
    assert "--cpus-per-task=2\n" in script(Site(cpus_per_task=2), Shape(1, 0), workers=4)


def test_an_experiments_options_are_over_the_sites():
    text = script(Site(constraint="a", sbatch={"mail_type": "FAIL"}), Shape(1, 0, (("constraint", "volta32gb"),)))
    assert "--constraint=volta32gb\n" in text
    assert "--constraint=a" not in text
    assert "--mail-type=FAIL\n" in text


def test_an_empty_file_is_a_site(tmp_path):
    assert read(tmp_path) == Site()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"partion": "gpu"}, "unknown key 'partion' in .*did you mean 'partition'"),
        ({"partition": 3}, "partition in .* must be a text of one line, got 3"),
        ({"gpus_per_node": -1}, "gpus_per_node .* at least 0, got -1"),
        ({"gpus_per_node": True}, "gpus_per_node .* whole number"),
        ({"requeues": 1.5}, "requeues .* whole number"),
        ({"hours": 0}, "hours .* above 0"),
        ({"hours": "3 days"}, "hours .* must be a number"),
        ({"memory_gb": False}, "memory_gb .* must be a number"),
        ({"setup": [1]}, "setup .* list of shell lines"),
        ({"sbatch": {"nodes": 2}}, "'nodes' in sbatch .* is set by `dens submit`"),
        ({"sbatch": {"--time": 2}}, "'time' in sbatch .* is set by `hours`"),
        ({"sbatch": {"cpus-per-task": 2}}, "is set by `cpus_per_task`"),
        ({"sbatch": {"exclusive": False}}, "'exclusive' .* must be a text of one line, a number or true"),
        ({"sbatch": ["exclusive"]}, "must be a block"),
        ({"hours": float("inf")}, "hours in .* must be a finite number above 0"),
        ({"hours": 0.01, "signal_seconds": 120}, "signal_seconds in .* is 120, and `hours: 0.01` are 36 s"),
        ({"partition": "gpu\n#SBATCH --exclusive"}, "partition in .* must be a text of one line"),
        ({"sbatch": {"comment": "a\nb"}}, "must be a text of one line"),
    ],
)
def test_slips(tmp_path, block, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **block)


def test_no_such_file():
    with pytest.raises(FileNotFoundError, match=r"there is no site file 'nowhere\.yml'"):
        read_site("nowhere.yml")


def test_options_may_be_typed_either_way():
    assert sbatch_options({"--mail-type": "END", "exclude": "n1"}, "x") == {"mail_type": "END", "exclude": "n1"}


def test_no_yaml(tmp_path):
    (tmp_path / "site.yml").write_text("hours: [1")
    with pytest.raises(ValueError, match=r"site.yml' is no YAML"):
        read_site(tmp_path / "site.yml")
