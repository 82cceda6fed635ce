import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {"lmax": 1, "layers": 2, "channels": 8, "batch": 1, "steps": 1, "threads": 1, "data": "synthetic"}
TINY = [f"--{name}={value}" for name, value in OPTIONS.items()]


@pytest.fixture(autouse=True)
def _one_thread():
    """`main` sets the number of threads of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load(monkeypatch):
    """Import a file of the folder as running a script there does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def samples(load):
    return load("structures").draw_samples("synthetic", count=2, size=1, seed=0, device="cpu")


@pytest.mark.parametrize(("model", "others"), [("equiformer_v2", ["plain", "fairchem_dens"]), ("escn", ["plain"])])
def test_table_and_file_hold_every_ratio(load, tmp_path, capsys, model, others):
    step_time = load("step_time")
    path = step_time.main([*TINY, f"--model={model}", "--extrapolate=4", "--no-memory", "--out", str(tmp_path)])
    report = json.loads(path.read_text())

    sizes = [(row["layers"], row["is_extrapolated"]) for row in report["table"]]
    assert sizes == [(1, False)] * 2 + [(2, False)] * 2 + [(4, True)] * 2
    assert {row["measure"] for row in report["table"]} == {step_time.STEP, step_time.INFERENCE}
    for row in report["table"]:
        assert list(row["ours_over"]) == others
        for other in others:
            expected = row["median"]["ours"] / row["median"][other]  # of a single round
            assert row["ours_over"][other]["median"] == pytest.approx(expected)
    assert max(report["runs"][0]["largest_differences"].values()) < 1e-4
    assert {"cpu", "cores", "torch", "gemm", "allocator"} <= report["hardware"].keys()

    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 4 + len(report["table"])
    assert len({line.count("|") for line in printed[2:]}) == 1


def test_ratio_is_the_median_over_rounds(load):
    step_time = load("step_time")
    costs = {"ours": [1.0, 1.0, 9.0], "plain": [2.0, 1.0, 9.0], "fairchem_dens": [2.0, 2.0, 10.0]}
    assert step_time.ratio(step_time.STEP, costs, "plain") == (1.0, 0.75, 1.0, 1.0)
    assert step_time.ratio(step_time.STEP, costs, "fairchem_dens") == pytest.approx((0.5, 0.5, 0.7, 0.9))


def test_extrapolation_is_a_line_through_both_runs(load):
    step_time = load("step_time")
    runs = [
        {
            "lmax": 1,
            "layers": layers,
            "costs": {step_time.STEP: {name: [5 + 2 * layers] for name in ("plain", "ours")}},
        }
        for layers in (3, 6)
    ]
    assert step_time._extrapolated(*runs, 12)["costs"][step_time.STEP]["ours"] == [29]


def test_every_contestant_has_each_place_in_the_order(load):
    seen = []
    actions = {name: lambda number, name=name: seen.append((number, name)) for name in "abc"}
    seconds = load("step_time").interleaved(actions, rounds=3, device="cpu")
    assert "".join(name for _, name in seen) == "cab" + "abc" + "bca" + "cab"
    assert all(len(values) == 3 for values in seconds.values())


def test_corrupted_share_is_that_of_the_paper(load):
    structures = load("structures")
    drawn = structures.draw_samples("synthetic", count=4, size=2, seed=0, device="cpu")
    assert structures.corrupted_share(drawn) == pytest.approx(0.25, abs=0.03)


def build_toys(contestants, model):
    return contestants.build_all(model, contestants.paper_settings(model, lmax=1, layers=1, channels=8), "cpu")


@pytest.mark.parametrize(
    ("model", "name", "part"),
    [
        *(
            ("equiformer_v2", name, part)
            for name in ("plain", "fairchem_dens")
            for part in ("backbone.blocks.0", "output_heads.energy", "output_heads.forces")
        ),
        ("escn", "plain", "backbone.layer_blocks.0"),
        ("escn", "plain", "output_heads.energy"),
        ("escn", "plain", "output_heads.forces"),
    ],
)
def test_check_refuses_other_weights(load, samples, model, name, part):
    contestants = load("contestants")
    networks = build_toys(contestants, model)
    sample = max(samples, key=load("structures").corrupted_atoms)
    assert max(contestants.require_equal(model, networks, sample).values()) < contestants.TOLERANCE
    with torch.no_grad():
        for parameter in networks[name].get_submodule(part).parameters():
            parameter.mul_(1.01)
    with pytest.raises(RuntimeError, match=f"ours and {name}"):
        contestants.require_equal(model, networks, sample)


def test_check_refuses_another_noise_head(load, samples):
    contestants = load("contestants")
    networks = build_toys(contestants, "equiformer_v2")
    sample = max(samples, key=load("structures").corrupted_atoms)
    with torch.no_grad():
        for parameter in networks["fairchem_dens"].output_heads["forces"].denoising_pos_block.parameters():
            parameter.mul_(1.01)
    with pytest.raises(RuntimeError, match="corrupted noise"):
        contestants.require_equal("equiformer_v2", networks, sample)


def test_unknown_folder_is_named(load, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load("step_time").main([*TINY, "--data", str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_memory_is_measured_in_a_fresh_process(load):
    """A child that dies gives NaN; at this size resident pages say no more than that something was used."""
    step_time = load("step_time")
    args = step_time._arguments(TINY)
    memory = {
        measure: step_time._in_fresh_process(args, measure, "ours", 1, 2)
        for measure in (step_time.STEP_MEMORY, step_time.INFERENCE_MEMORY)
    }
    assert all(figure > 0 for figure in memory.values())
