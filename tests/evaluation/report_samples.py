"""Run folders made by hand and the config of a tiny run, for tests of reports."""

from __future__ import annotations

import json
import pickle

import lmdb

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
    "alpha_drop": 0.0,
    "drop_path_rate": 0.0,
    "weight_init": "uniform",
}
OPTIM = {
    "batch_size": 2,
    "eval_batch_size": 3,
    "num_workers": 0,
    "lr_initial": 1.0e-3,
    "optimizer": "AdamW",
    "scheduler": "LambdaLR",
    "scheduler_params": {"lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.5, "lr_min_factor": 0.01},
    "max_epochs": 1,
    "eval_every": 2,
    "ema_decay": 0.9,
}


def write_run(root, name, errors, *, denoises=False):
    """A run without checkpoint: a validation with (forces, energy) errors in eV/Å and eV every 100 steps, 10 min."""
    folder = root / "checkpoints" / f"2026-01-02-03-04-05-{name}"
    folder.mkdir(parents=True)
    rows = []
    for number, (forces, energy) in enumerate(errors, start=1):
        row = {"step": 100 * number, "time": 1e9 + 600.0 * number, "forces_mae": forces, "energy_mae": energy}
        rows += [{"split": "train", **row, **({"noise_mae": 0.05} if denoises else {})}, {"split": "val", **row}]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_lmdb(path, structures):
    """A data set as fairchem reads it."""
    path.mkdir(parents=True)
    with lmdb.open(str(path / "data.0000.lmdb"), subdir=False, map_size=1 << 26) as env, env.begin(write=True) as txn:
        for index, structure in enumerate(structures):
            txn.put(str(index).encode(), pickle.dumps(structure))
        txn.put(b"length", pickle.dumps(len(structures)))
