import functools
import json
import math
import os
import signal

import pytest
import torch

OPTIONS = {"lmax": 1, "layers": 2, "channels": 8, "batch": 1, "steps": 1, "threads": 1, "data": "synthetic"}
TINY = [f"--{name}={value}" for name, value in OPTIONS.items()]


@pytest.fixture
def samples(load):
    return load("structures").draw_samples("synthetic", count=2, size=1, seed=0, device="cpu")


@pytest.mark.parametrize(
    ("model", "others"), [("equiformer_v2", ["plain", "fairchem_dens", "ours_host"]), ("escn", ["plain"])]
)
def test_table_plot_and_file_hold_every_ratio(load, tmp_path, capsys, model, others):
    step_time, measures = load("step_time"), load("measures")
    options = [f"--model={model}", "--extrapolate=4", "--no-memory"]
    path = step_time.main([*TINY, *options, "--out", str(tmp_path)])
    report = json.loads(path.read_text())
    assert report["failures"] == {}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    sizes = [(row["layers"], row["is_extrapolated"]) for row in report["table"]]
    assert sizes == [(1, False)] * 3 + [(2, False)] * 3 + [(4, True)] * 3
    assert {row["measure"] for row in report["table"]} == {measures.STEP, measures.GRADIENTS, measures.INFERENCE}
    for row in report["table"]:
        assert list(row["times_less"]) == others
        for other in others:
            expected = row["median"][other] / row["median"]["ours"]  # of a single round
            assert row["times_less"][other]["median"] == pytest.approx(expected)
    assert max(report["runs"][0]["largest_differences"].values()) < 1e-4
    assert report["runs"][0]["onednn_calls"].keys() == {*others, "ours"}
    assert {"cpu", "cores", "gpu", "versions", "threads", "gemm", "allocator"} <= report["hardware"].keys()

    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(report["table"])
    assert len({line.count("|") for line in printed}) == 1


def test_ratio_says_how_many_times_less_ours_costs(load):
    measures = load("measures")
    costs = {"ours": [1.0, 1.0, 9.0], "plain": [2.0, 1.0, 9.0], "fairchem_dens": [2.0, 3.0, 36.0]}
    assert measures.ratio(costs, "plain") == (1.0, 1.0, 1.5)
    assert measures.ratio(costs, "fairchem_dens") == (3.0, 2.5, 3.5)


def test_goals_depend_on_device_allocator_and_precision(load):
    measures = load("measures")
    step = {"measure": measures.STEP, "precision": "fp32"}
    assert measures.goal(**step, device="cpu", is_tuned=False) == (3.0, 5.0)
    assert measures.goal(**step, device="cpu", is_tuned=True) == (2.2, 3.0)
    assert measures.goal(**step, device="cuda", is_tuned=True) == (2.0, 3.0)
    assert measures.goal(measures.STEP, precision="bf16", device="cuda", is_tuned=False) == (2.0, 4.0)
    assert measures.goal(measures.STEP, precision="amp", device="cuda", is_tuned=False) is None


def test_a_failure_is_named_and_the_others_go_on(load, tmp_path, monkeypatch, capsys):
    step_time = load("step_time")
    run = {"size": "83m", "lmax": 1, "layers": 1, "precision": "bf16", "compared": "a / b", "is_extrapolated": False}
    run |= {"onednn_calls": {}, "costs": {"step, s": {"plain": [2.0], "ours": [1.0]}}}

    def fails_in_fp32(_args, _samples, _size, _settings, precision):
        if precision == "fp32":
            raise torch.cuda.OutOfMemoryError("too large")
        return run

    monkeypatch.setattr(step_time, "_run", fails_in_fp32)
    path = step_time.main([*TINY, "--precision=fp32,bf16", "--no-memory", f"--out={tmp_path}"])
    report = json.loads(path.read_text())
    assert report["failures"] == {"83m, degree 1, fp32": "too large"}
    assert [row["times_less"]["plain"]["median"] for row in report["table"]] == [2.0]
    assert "Not measured: 83m, degree 1, fp32: too large" in capsys.readouterr().out


def test_extrapolation_is_a_line_through_both_runs(load):
    half, full = ({"layers": layers, "costs": {"step, s": {"plain": [5 + 2 * layers]}}} for layers in (3, 6))
    run = load("step_time").extrapolated(half, full, 12)
    assert run["costs"] == {"step, s": {"plain": [29]}}
    assert run["is_extrapolated"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--precision=tf32", "needs --device cuda"),
        ("--precision=fp64", "unknown fp64; choose from fp32, tf32, amp, bf16"),
        ("--size=31m", "choose from 83m, 122m, 153m"),
        ("--model=escn --precision=bf16", "eSCN is measured in fp32 alone"),
        ("--steps=0", "--steps must be at least 1"),
    ],
)
def test_refuses_what_cannot_be_measured(load, capsys, options, message):
    with pytest.raises(SystemExit):
        load("step_time").main(options.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("size", "layers", "order"), [("83m", 12, 2), ("122m", 18, 2), ("153m", 20, 3)])
def test_sizes_are_those_of_training(load, size, layers, order):
    settings = load("sizes").paper_settings("equiformer_v2", size=size)
    assert (settings["num_layers"], settings["lmax_list"], settings["mmax_list"]) == (layers, [6], [order])
    toy = load("sizes").paper_settings("equiformer_v2", size=size, lmax=2, layers=1, channels=8)
    assert (toy["num_layers"], toy["lmax_list"], toy["mmax_list"], toy["grid_resolution"]) == (1, [2], [2], 10)
    assert {toy[name] for name in toy if name.endswith("_channels")} == {8}


def test_tf32_holds_in_its_own_mode_alone(load):
    pair = load("modes").pairing("tf32", "cuda")
    before = torch.get_float32_matmul_precision()
    with pair.fairchem.products():
        assert torch.get_float32_matmul_precision() == "high"
        with load("modes").pairing("fp32", "cuda").fairchem.products():
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_ratios_name_what_is_compared(load):
    pairing = load("modes").pairing
    assert pairing("bf16", "cuda").label == "bf16 / fairchem AMP (fp16)"
    assert pairing("bf16", "cpu").label == "bf16 / fairchem fp32"  # where fairchem has no AMP
    assert pairing("bf16", "cuda").mode("ours_host") == pairing("amp", "cuda").mode("plain")


def test_every_contestant_has_each_place_in_the_order(load):
    seen = []
    actions = {name: lambda number, name=name: seen.append((number, name)) for name in "abc"}
    seconds = load("timing").interleaved(actions, rounds=3, device="cpu")
    assert "".join(name for _, name in seen) == "cab" + "abc" + "bca" + "cab"
    assert all(len(values) == 3 for values in seconds.values())


def test_corrupted_share_is_that_of_the_paper(load):
    structures = load("structures")
    drawn = structures.draw_samples("synthetic", count=4, size=2, seed=0, device="cpu")
    assert structures.corrupted_share(drawn) == pytest.approx(0.25, abs=0.03)


def test_warm_up_sees_every_batch_and_is_not_counted(load):
    seen = []
    seconds = load("timing").interleaved({"a": seen.append}, rounds=2, device="cpu", warm_up=2)
    assert seen == [0, 1, 0, 1]
    assert len(seconds["a"]) == 2


def build_toys(load, model):
    settings = load("sizes").paper_settings(model, lmax=1, layers=1, channels=8)
    return load("contestants").build_all(model, settings, "cpu")


@pytest.mark.parametrize(
    ("model", "name", "part"),
    [
        *(
            ("equiformer_v2", name, part)
            for name in ("plain", "fairchem_dens")
            for part in ("backbone.blocks.0", "output_heads.energy", "output_heads.forces")
        ),
        ("equiformer_v2", "ours_host", "backbone.blocks.0"),
        ("escn", "plain", "backbone.layer_blocks.0"),
        ("escn", "plain", "output_heads.energy"),
        ("escn", "plain", "output_heads.forces"),
    ],
)
def test_check_refuses_other_weights(load, samples, model, name, part):
    contestants = load("contestants")
    networks = build_toys(load, model)
    sample = max(samples, key=load("structures").corrupted_atoms)
    assert max(contestants.require_equal(model, networks, sample).values()) < 1e-4
    with torch.no_grad():
        for parameter in networks[name].get_submodule(part).parameters():
            parameter.mul_(1.01)
    with pytest.raises(RuntimeError, match=f"ours and {name}"):
        contestants.require_equal(model, networks, sample)


def test_check_refuses_another_noise_head(load, samples):
    contestants = load("contestants")
    networks = build_toys(load, "equiformer_v2")
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
    """At this size resident pages say no more than that something was used."""
    memory, measures, draw = load("memory"), load("measures"), load("structures").draw_samples
    settings = load("sizes").paper_settings("equiformer_v2", lmax=1, layers=2, channels=8)
    samples = functools.partial(draw, "synthetic", count=1, size=1, seed=0, device="cpu")
    case = memory.Case("equiformer_v2", settings, "fp32", "cpu", 1, samples)
    for measure in (measures.STEP_MEMORY, measures.INFERENCE_MEMORY):
        assert memory.in_fresh_process(case, measure, "ours") > 0


@pytest.mark.slow
def test_a_process_killed_for_want_of_memory_gives_no_figure(load):
    case = load("memory").Case("equiformer_v2", {}, "fp32", "cpu", 1, _killed)
    assert math.isnan(load("memory").in_fresh_process(case, "step, MiB", "ours"))


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)
