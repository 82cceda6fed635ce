"""What follows the gradients gives fairchem's numbers, in fewer passes."""

from __future__ import annotations

import copy

import pytest
import torch
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from samples import MODEL

import dens_plugin
from dens_plugin.training.loop import TrainingLoop
from dens_plugin.training.optimizer import (
    Averages,
    clip_gradients,
    keep_way_of_stepping,
    spare_from_decay,
    with_fused_step,
)

SHAPES = ((7, 5), (13,), (1,), (3, 4, 5))
ULP = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}


def parameters(dtype=torch.float32, *, gradient=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    for value in made:
        value.grad = gradient * torch.randn(value.shape, generator=generator).to(dtype)
    return made


def close(found, expected, tolerance):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True))


class TestAverages:
    @pytest.mark.parametrize("dtype", ULP)
    @pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1.0])
    @pytest.mark.parametrize("warms", [False, True])
    def test_are_fairchems(self, dtype, decay, warms):
        trained = parameters(dtype)
        ours, host = (kind(trained, decay, warms) for kind in (Averages, ExponentialMovingAverage))
        for step in range(5):
            with torch.no_grad():
                for value in trained:
                    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(step)))
            ours.update()
            host.update()
        assert close(ours.shadow_params, host.shadow_params, 20 * ULP[dtype])

    def test_state_is_fairchems_both_ways(self):
        trained, others = parameters(), parameters(seed=1)
        ours, host = Averages(trained, 0.9), ExponentialMovingAverage(others, 0.8)
        state = copy.deepcopy(host.state_dict())
        host.load_state_dict(ours.state_dict())
        ours.load_state_dict(state)
        assert host.decay == 0.9
        assert ours.decay == 0.8
        assert all(torch.equal(a, b) for a, b in zip(host.shadow_params, trained, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ours.shadow_params, others, strict=True))

    @pytest.mark.parametrize(("warms", "left"), [(False, 0.999**100), (True, 1e-9)])
    def test_forget_the_first_weights_with_a_warm_up(self, warms, left):
        """Weights that are 0 from the first step on: what the average holds is what it keeps of the first weights."""
        trained = [torch.nn.Parameter(torch.ones(1))]
        ours = Averages(trained, 0.999, warms)
        trained[0].detach().zero_()
        for _ in range(100):
            ours.update()
        assert ours.shadow_params[0].item() <= left * (1 + 1e-4)
        assert (ours.shadow_params[0].item() > 0.9) is not warms

    def test_go_on_with_a_warm_up_or_without(self):
        trained = parameters()
        ours = Averages(trained, 0.999, use_num_updates=True)
        ours.update()
        ours.warm_up(True, updates=7)
        assert ours.num_updates == 1  # its own count, and not another
        ours.warm_up(False, updates=7)
        assert ours.num_updates is None
        ours.warm_up(True, updates=7)
        assert ours.num_updates == 7

    def test_leave_out_frozen_parameters(self):
        trained = parameters()
        trained[1].requires_grad_(False)
        ours = Averages(trained, 0.5)
        ours.update()
        assert len(ours.shadow_params) == len(SHAPES) - 1

    def test_of_nothing(self):
        Averages([], 0.5).update()


class TestClipping:
    @pytest.mark.parametrize("limit", [0.1, 3.0, 1e6, None])
    @pytest.mark.parametrize("dtype", ULP)
    def test_is_torchs(self, dtype, limit):
        ours, torchs = parameters(dtype), parameters(dtype)
        ours[2].grad = torchs[2].grad = None
        norm = clip_gradients(ours, limit)
        expected = torch.nn.utils.clip_grad_norm_(torchs, torch.inf if limit is None else limit)
        assert torch.equal(norm, expected)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, torchs, strict=True) if a.grad is not None)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_tells_a_bad_gradient(self, value):
        bad = parameters()
        bad[0].grad[0, 0] = value
        assert not torch.isfinite(clip_gradients(bad, 1.0))

    def test_of_nothing(self):
        assert clip_gradients([torch.nn.Parameter(torch.ones(2))], 1.0) == 0


class TestFusedStep:
    def test_is_the_default_of_adam(self):
        assert with_fused_step({}, parameters())["optimizer_params"] == {"fused": True}
        named = with_fused_step({"optimizer": "Adam", "optimizer_params": {"eps": 1e-6}}, parameters())
        assert named["optimizer_params"] == {"eps": 1e-6, "fused": True}

    @pytest.mark.parametrize(
        "optim",
        [
            {"optimizer": "SGD", "optimizer_params": {"momentum": 0.9}},
            {"optimizer_params": {"fused": False}},
            {"optimizer_params": {"foreach": True}},
            {"optimizer_params": {"capturable": True}},
        ],
        ids=str,
    )
    def test_leaves_what_is_said(self, optim):
        assert with_fused_step(optim, parameters()) == optim

    def test_is_not_for_parameters_that_have_none(self):
        there = [torch.nn.Parameter(torch.empty(2, device="meta"))]
        assert with_fused_step({}, there)["optimizer_params"] == {}

    def test_is_the_plain_step_to_rounding(self):
        fused, plain = parameters(), parameters()
        for made, way in ((fused, True), (plain, False)):
            optimizer = torch.optim.AdamW(made, lr=1e-2, weight_decay=1e-2, fused=way)
            for _ in range(10):
                optimizer.step()
        assert close(fused, plain, 1e-6)

    @pytest.mark.parametrize("own", [True, False])
    def test_of_a_run_stays_when_it_loads_the_state_of_another(self, own):
        def made(way):
            values = parameters()
            optimizer = torch.optim.AdamW(values, lr=1e-2, fused=way)
            keep_way_of_stepping(optimizer)
            optimizer.step()
            return values, optimizer

        (_, other), (values, optimizer) = made(not own), made(own)
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
        assert optimizer.param_groups[0]["fused"] is own
        before = copy.deepcopy(values)
        optimizer.step()
        assert not torch.equal(values[0], before[0])
        assert optimizer.state[values[0]]["step"] == 2


class TestInTheTrainer:
    @pytest.mark.parametrize("options", [{"weight_decay": 1e-3}, {"weight_decay": 1e-3, "fused": True}, {}], ids=str)
    def test_is_fused(self, config, build, options):
        config["optim"]["optimizer_params"] = options
        trainer = build(config)
        assert all(group["fused"] for group in trainer.optimizer.param_groups)
        assert trainer.config["optim"]["optimizer_params"] == options  # so that a checkpoint says what was asked for
        assert isinstance(trainer.ema, Averages)

    def test_is_not_where_the_config_says_so(self, config, build):
        config["optim"]["optimizer_params"]["fused"] = False
        assert not build(config).optimizer.param_groups[0]["fused"]

    def test_goes_on_from_a_run_of_fairchems_optimiser(self, config, build):
        config["optim"]["optimizer_params"]["fused"] = False
        first = build(config)
        first.train(disable_eval_tqdm=True)
        del config["optim"]["optimizer_params"]["fused"]
        config["optim"]["max_epochs"] = 2
        second = build(config)
        second.load_checkpoint(str(first._folder / "checkpoint.pt"))
        assert all(group["fused"] for group in second.optimizer.param_groups)
        second.train(disable_eval_tqdm=True)
        assert second.step == 12

    def test_overflow_of_amp_is_left_out_by_the_scaler(self, config, build):
        """A fused optimiser is called in spite of it; that is no bad step, and the scale goes down."""
        trainer = build(config)
        trainer.scaler = torch.GradScaler("cpu", init_scale=1e38)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.step = 1
        loop = TrainingLoop(trainer)
        loop.ledger.add(loop.optimise(next(iter(trainer.train_loader))))
        loop.ledger.settle()
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
        assert trainer.scaler.get_scale() == pytest.approx(5e37, rel=1e-3)
        assert trainer.bad_steps._in_a_row == 0


class TestDecay:
    """What weight decay spares in a model of backbone and heads, against the same network in one piece."""

    def spared(self, model):
        spare_from_decay(model)
        names = model.no_weight_decay()
        return {name for name, _ in model.named_parameters() if any(name.endswith(each) for each in names)}

    def test_is_the_authors_rule_in_both_forms(self):
        settings = {key: value for key, value in MODEL.items() if key != "name"}
        flat = dens_plugin.FlatEquiformerV2DeNS(**settings)
        heads = {"energy": "EnergyHead", "forces": "ForceHead", "noise": "NoiseHead"}
        hydra = HydraModel(
            backbone={"model": "dens_plugin.EquiformerV2DeNS", **settings},
            heads={name: {"module": f"dens_plugin.{head}"} for name, head in heads.items()},
            pass_through_head_outputs=True,
        )
        spared = self.spared(hydra)
        assert spared == self.spared(flat)
        assert {"backbone.norm.affine_weight", "backbone.blocks.0.ga.proj.bias"} <= spared
        assert "backbone.sphere_embedding.weight" not in spared
        assert "output_heads.forces.force_block.proj.weight" not in spared

    def test_of_a_network_without_a_rule_all_decays(self):
        model = torch.nn.Linear(2, 2)
        spare_from_decay(model)
        assert not hasattr(model, "no_weight_decay")
