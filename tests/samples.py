"""Settings of tiny models and runs, and a data set writer, for tests of all folders."""

from __future__ import annotations

import copy
import pickle

import lmdb
import numpy as np

MODEL = {
    "name": "equiformer_v2_dens",
    "otf_graph": True,
    "max_neighbors": 10,
    "max_radius": 4.0,
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "norm_type": "layer_norm_sh",
    "lmax_list": [1],
    "mmax_list": [1],
    "edge_channels": 8,
    "grid_resolution": 6,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
    "weight_init": "uniform",
}
PLAIN_BACKBONE = "equiformer_v2_backbone"
PLAIN_MODEL = {
    "name": "hydra",
    "otf_graph": True,
    "pass_through_head_outputs": True,
    "backbone": {**{key: MODEL[key] for key in MODEL if key not in ("name", "otf_graph")}, "model": PLAIN_BACKBONE},
    "heads": {"energy": {"module": "equiformerV2_scalar_head"}, "forces": {"module": "equiformerV2_vector_head"}},
}


def write_lmdb(path, structures):
    """A data set as fairchem reads it, with metadata."""
    path.mkdir(parents=True)
    with lmdb.open(str(path / "data.0000.lmdb"), subdir=False, map_size=1 << 26) as env, env.begin(write=True) as txn:
        for index, structure in enumerate(structures):
            txn.put(str(index).encode(), pickle.dumps(structure))
        txn.put(b"length", pickle.dumps(len(structures)))
    np.savez(path / "metadata.npz", natoms=np.array([structure.num_nodes for structure in structures]))
    return path


def base_config(data):
    """A complete config for a run of a few steps on the folders train and val of ``data``."""
    return {
        "trainer": "dens_plugin.DeNSTrainer",
        "dataset": {
            "train": {
                "format": "lmdb",
                "src": str(data / "train"),
                "transforms": {
                    "normalizer": {"energy": {"mean": 0.3, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 2.0}}
                },
            },
            "val": {"src": str(data / "val")},
        },
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 2}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {"primary_metric": "forces_mae", "metrics": {"energy": ["mae"], "forces": ["mae"]}},
        "model": copy.deepcopy(MODEL),
        "task": {"objective": {"name": "dens", "prob": 0.8}},
        "logger": "tensorboard",
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 3,
            "num_workers": 0,
            "lr_initial": 1.0e-3,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 1.0e-3},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_factor": 0.2,
                "warmup_epochs": 0.5,
                "lr_min_factor": 0.01,
            },
            "max_epochs": 1,
            "clip_grad_norm": 100,
            "ema_decay": 0.99,
        },
    }


def trainer_arguments(config, *, run_dir, **changes):
    """The keyword arguments with which fairchem builds a trainer from a config."""
    return {
        "task": config["task"],
        "model": config["model"],
        "outputs": config["outputs"],
        "dataset": config["dataset"],
        "optimizer": config["optim"],
        "loss_functions": config["loss_functions"],
        "evaluation_metrics": config["evaluation_metrics"],
        "identifier": "test",
        "run_dir": str(run_dir),
        "seed": 0,
        "logger": config["logger"],
        "local_rank": 0,
        "cpu": True,
        "print_every": 1,
        "name": "ocp",
    } | changes
