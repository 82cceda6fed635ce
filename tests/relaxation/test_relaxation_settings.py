"""The paper's values, two layouts, and what is refused."""

from __future__ import annotations

import pytest

from dens_plugin.relaxation.settings import RelaxationSettings


class TestSettings:
    def test_the_papers_are_the_defaults(self):
        settings = RelaxationSettings.from_config({"task": {}, "optim": {"eval_batch_size": 7}})
        assert settings.optimizer == {"maxstep": 0.2, "memory": 50, "damping": 1.2, "alpha": 80.0}
        assert (settings.steps, settings.fmax, settings.batch_size) == (300, 0.02, 7)

    def test_both_layouts_say_the_same(self):
        ours = {"steps": 200, "fmax": 0.04, "alpha": 70, "damping": 1.0, "out": "x", "trajectory": "full"}
        options = {"name": "lbfgs", "alpha": 70, "damping": 1.0, "traj_dir": "x"}
        theirs = {"relax_opt": options, "relaxation_steps": 200, "relaxation_fmax": 0.04}
        read_settings = [RelaxationSettings.from_config({"task": task}) for task in ({"relax": ours}, theirs)]
        assert read_settings[0] == read_settings[1]
        assert options == {"name": "lbfgs", "alpha": 70, "damping": 1.0, "traj_dir": "x"}

    @pytest.mark.parametrize(
        ("task", "message"),
        [
            ({"relax": {"fmx": 1}}, "did you mean 'fmax'"),
            ({"relax": {"fmax": 0}}, "task.relax.fmax must be a number above 0"),
            ({"relax": {"fmax": float("nan")}}, "task.relax.fmax"),
            ({"relax": {"steps": 2.5}}, "task.relax.steps must be a whole number"),
            ({"relax": {"memory": True}}, "task.relax.memory must be a number"),
            ({"relax": {"trajectory": "ful"}}, "did you mean 'full'"),
            ({"relax": [1]}, "task.relax must be a block"),
            ({"relax": {}, "relaxation_steps": 3}, "both task.relax and task.relaxation_steps"),
            ({"relax_opt": {"name": "bfgs"}}, "the only optimizer is 'lbfgs'"),
            ({"relax_opt": {"maxsteps": 1}}, "did you mean 'maxstep'"),
            ({"relax_cell": True}, "predict no stress"),
            ({"num_relaxation_batches": 3}, "smaller data set"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, task, message):
        with pytest.raises(ValueError, match=message):
            RelaxationSettings.from_config({"task": task})
