"""Names, shares and contents of the structures to relax."""

from __future__ import annotations

import pytest
import torch
from relaxation_samples import slab

from dens_plugin.relaxation.inputs import Inputs, gather_inputs, without_labels
from dens_plugin.testing import random_structure


class TestInputs:
    def test_frames_of_a_system_have_names_of_their_own(self):
        structures = [slab(seed, sid="a") for seed in range(3)]
        for fid, structure in enumerate(structures):
            structure.fid = torch.tensor([fid])
        assert Inputs.from_entries(gather_inputs(structures)).names == ("a_0", "a_1", "a_2")

    def test_names_are_systems_where_these_are_unique(self):
        structures = [slab(seed, sid=torch.tensor(seed)) for seed in (10, 9)]
        assert Inputs.from_entries(gather_inputs(structures)).names == ("10", "9")

    def test_identity_is_content(self):
        structures = [slab(seed) for seed in range(3)]
        same_content = Inputs.from_entries(gather_inputs(structures[::-1])).identity()
        assert Inputs.from_entries(gather_inputs(structures)).identity() == same_content
        structures[1].pos = structures[1].pos + 1e-5
        assert Inputs.from_entries(gather_inputs(structures)).identity() != same_content

    def test_overlapping_atoms_are_doubted(self):
        structure = slab(1)
        structure.pos[4] = structure.pos[3] + 0.1
        sound, doubtful = gather_inputs([slab(0), structure])
        assert not sound.doubt
        assert "0.17 Å apart (less than 0.4 Å); remove them, or check cell" in doubtful.doubt

    @pytest.mark.parametrize("world_size", [1, 2, 3, 7])
    def test_every_structure_is_in_one_share(self, world_size):
        inputs = Inputs.from_entries(gather_inputs([slab(seed, copies=1 + seed % 3) for seed in range(5)]))
        shares = [inputs.batches({"0", "2", "4", "3"}, rank, world_size, 2) for rank in range(world_size)]
        taken = sorted(inputs.names[at] for share in shares for batch in share for at in batch)
        assert taken == ["0", "2", "3", "4"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda one: one.update({"sid": 0}), "1 identifiers more than once, first '0'"),
            (lambda one: one.update({"pos": one.pos * torch.nan}), "sid 1 has positions that are NaN"),
            (lambda one: one.update({"fixed": one.fixed[:2]}), "sid 1 has 2 rows of `fixed` for 5 atoms"),
            (lambda one: one.update({"charge": 1}), "only some structures have `charge`"),
            (lambda one: one.update({"sid": "x" * 300}), "too long"),
            (lambda one: one.__delitem__("sid"), "the structure at 1 has no `sid`"),
            (lambda one: one.update({"pos": one.pos[[0, 1, 2, 3, 3]]}), r"sid 1.* has atoms 3 and 4 at one place"),
        ],
    )
    def test_bad_structures_are_named(self, change, message):
        structures = [slab(0), slab(1)]
        change(structures[1])
        with pytest.raises(ValueError, match=message):
            Inputs.from_entries(gather_inputs(structures))

    def test_no_structures(self):
        with pytest.raises(ValueError, match="no structures"):
            Inputs.from_entries(gather_inputs([]))

    def test_models_see_no_labels(self):
        structure = random_structure(4)
        structure.pos_relaxed, structure.y_relaxed, structure.edge_index = structure.pos, 1.0, torch.zeros(2, 3)
        del structure["tags"]
        seen = without_labels(structure)
        assert set(seen.to_dict()) == {"pos", "cell", "atomic_numbers", "natoms", "fixed", "tags", "sid", "fid"}
        assert "energy" in structure
