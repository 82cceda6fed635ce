"""A tiny model's settings and a data set writer for tests of training."""

from __future__ import annotations

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
    np.savez(path / "metadata.npz", natoms=np.array([structure.natoms for structure in structures]))
    return path
