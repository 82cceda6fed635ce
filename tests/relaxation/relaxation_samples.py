"""Slabs, and effective medium theory as a potential, for tests of relaxations."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from torch_geometric.data import Data

from dens_plugin.relaxation.settings import RelaxationSettings

PAPER = RelaxationSettings()


def slab(seed, *, sid=None, copies=1):
    """Copper with an oxygen atom, moved off the minimum by some tenths of an Å; the lower layer is fixed."""
    atoms = fcc111("Cu", size=(2, copies, 2), vacuum=5.0, periodic=True)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    fixed = atoms.get_tags() == 2
    rng = np.random.default_rng(seed)
    atoms.positions[~fixed] += rng.normal(scale=0.1, size=(int((~fixed).sum()), 3))
    return Data(
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(atoms.numbers),
        natoms=len(atoms),
        fixed=torch.tensor(fixed).long(),
        tags=torch.tensor(2 - atoms.get_tags()).long(),
        sid=seed if sid is None else sid,
    )


def as_atoms(structure):
    cell = structure.cell.reshape(3, 3).double().numpy()
    return Atoms(structure.atomic_numbers.numpy(), structure.pos.double().numpy(), cell=cell, pbc=True)


class EMTPotential:
    """Effective medium theory, one structure after the other; knows how many structures it was asked for."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def predict(self, batch, per_image=False, disable_tqdm=True):
        self.calls.append([str(sid) for sid in (batch.sid.tolist() if torch.is_tensor(batch.sid) else batch.sid)])
        energies, forces = zip(*(self.one(batch, index) for index in range(batch.num_graphs)), strict=True)
        return {"energy": torch.tensor(energies), "forces": torch.tensor(np.concatenate(forces)).float()}

    def one(self, batch, index):
        mask = batch.batch == index
        atoms = Atoms(batch.atomic_numbers[mask], batch.pos[mask].double().numpy(), cell=batch.cell[index], pbc=True)
        atoms.calc = EMT()
        return atoms.get_potential_energy(), atoms.get_forces()


def by_sid(found):
    return {str(outcome.structure.sid): outcome for outcome in found}


def same(ours, theirs):
    return (
        ours.status == theirs.status
        and ours.steps == theirs.steps
        and np.array_equal(ours.frames[-1].pos, theirs.frames[-1].pos)
        and ours.frames[-1].energy == theirs.frames[-1].energy
    )
