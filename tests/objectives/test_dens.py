from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.data import Batch

from dens_plugin.fields import ENERGY, MD, NOISE, corrupted_structures, corruption_of, free_atoms, rows_of
from dens_plugin.objectives.dens import DeNS, Eligibility
from dens_plugin.objectives.noise import FixedSigma, SigmaLadder, StructureRandom
from dens_plugin.objectives.s2ef import S2EF
from dens_plugin.testing import EPOCH, ObjectiveContract, random_batch, random_structure


class TestDeNSContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return DeNS(prob=0.8)


class TestDeNSBesideTheCleanContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return DeNS(prob=0.8, keep_labels=True)


class TestDroppedLabelsContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return DeNS(prob=0.8, only_drop_labels=True)


class TestS2EFContract(ObjectiveContract):
    @pytest.fixture
    def objective(self):
        return S2EF()


def many(count: int = 400, size: int = 30) -> Batch:
    return Batch.from_data_list([random_structure(size, seed=index, sid=index) for index in range(count)])


class TestStatistics:
    """Counts and moments within four standard deviations of sampling."""

    @pytest.fixture(scope="class")
    def prepared(self):
        return DeNS(prob=0.3, corrupt_ratio=0.4, sigma=FixedSigma(0.05)).prepare(many(), EPOCH)

    def test_share_of_structures(self, prepared):
        touched = torch.zeros(400).index_add(0, prepared.batch, corruption_of(prepared).mask.float()) > 0
        assert abs(touched.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)

    def test_share_of_free_atoms(self, prepared):
        corruption = corruption_of(prepared)
        touched = torch.zeros(400).index_add(0, prepared.batch, corruption.mask.float()) > 0
        candidates = free_atoms(prepared) & touched[prepared.batch]
        share = corruption.mask[candidates].float().mean()
        assert abs(share - 0.4) < 4 * math.sqrt(0.4 * 0.6 / candidates.sum())

    def test_noise_is_gaussian_with_sigma(self, prepared):
        corruption = corruption_of(prepared)
        noise = corruption.noise[corruption.mask] / 0.05
        n = noise.numel()
        assert abs(noise.mean()) < 4 / math.sqrt(n)
        assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
        assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)  # kurtosis of a normal distribution

    def test_noise_is_the_displacement(self, prepared):
        assert torch.allclose(prepared.pos - many().pos, corruption_of(prepared).noise, atol=1e-6)

    def test_components_are_independent(self, prepared):
        corruption = corruption_of(prepared)
        correlation = torch.corrcoef(corruption.noise[corruption.mask].T)
        limit = 4 / math.sqrt(corruption.mask.sum())
        assert (correlation - torch.eye(3)).abs().max() < limit


def test_coin_falls_per_structure():
    corruption = corruption_of(DeNS(prob=0.5, corrupt_ratio=None).prepare(many(40), EPOCH))
    share = torch.zeros(40).index_add(0, many(40).batch, corruption.mask.float()) / 15  # half of 30 atoms are free
    assert set(share.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("other", [StructureRandom(4, 1), StructureRandom(3, 2)])
def test_noise_changes_with_seed_and_epoch(other):
    first, second = (DeNS(prob=1.0).prepare(random_batch(), rng).pos for rng in (EPOCH, other))
    assert not torch.equal(first, second)


def test_noise_does_not_touch_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    DeNS(prob=1.0).prepare(random_batch(), EPOCH)
    assert torch.equal(torch.rand(3), expected)


def test_frames_of_one_relaxation_have_noise_of_their_own():
    first, second = random_structure(8, seed=0), random_structure(8, seed=0)
    second.fid = 1
    prepared = DeNS(prob=1.0, corrupt_ratio=None).prepare(Batch.from_data_list([first, second]), EPOCH)
    assert not torch.equal(*corruption_of(prepared).noise.split(8))


def test_zero_probability_changes_nothing():
    batch = random_batch()
    prepared = DeNS(prob=0.0).prepare(batch, EPOCH)
    assert torch.equal(prepared.pos, batch.pos)
    assert not corruption_of(prepared).mask.any()
    plain = rows_of(S2EF().prepare(batch, EPOCH))
    for name, rows in plain.items():
        assert torch.equal(rows_of(prepared)[name].mask, rows.mask)
        assert rows_of(prepared)[name].count == rows.count


@pytest.mark.parametrize("objective", [S2EF(), DeNS(prob=0.5)], ids=["s2ef", "dens"])
def test_lists_the_rows_that_count(objective):
    rows = rows_of(objective.prepare(random_batch((40, 40)), EPOCH))
    assert {"energy", "forces", *(output.name for output in objective.outputs)} == set(rows)
    for of_target in rows.values():
        assert torch.equal(of_target.chosen, of_target.mask.nonzero().view(-1))


def test_encodes_the_forces_of_corrupted_atoms_only():
    batch = random_batch((30,))
    corruption = corruption_of(DeNS(prob=1.0).prepare(batch, EPOCH))
    assert torch.equal(corruption.forces[corruption.mask], batch.forces[corruption.mask])
    assert not corruption.forces[~corruption.mask].any()


def test_ablation_without_force_encoding():
    corruption = corruption_of(DeNS(prob=1.0, encode_forces=False).prepare(random_batch((30,)), EPOCH))
    assert corruption.mask.any()
    assert not corruption.forces.any()


def test_encodes_forces_in_another_unit():
    batch = random_batch((30,))
    plain, scaled = (corruption_of(DeNS(prob=1.0, encode_scale=s).prepare(batch, EPOCH)).forces for s in (1.0, 23.0605))
    assert torch.allclose(scaled, 23.0605 * plain)


def test_uncorrupted_atoms_of_corrupted_structures_may_be_left_out():
    batch = many(20)
    prepared = DeNS(prob=0.5, forces_of_corrupted=False).prepare(batch, EPOCH)
    corrupted = corrupted_structures(prepared, corruption_of(prepared).mask)
    rows = rows_of(prepared)["forces"].mask
    assert torch.equal(rows, (batch.fixed == 0) & ~corrupted[batch.batch])


class TestCopies:
    """DeNS as a second, corrupted copy of the chosen structures."""

    @pytest.fixture
    def prepared(self):
        return DeNS(prob=0.5, keep_labels=True).prepare(many(20), EPOCH)

    def test_clean_structures_keep_all_labels(self, prepared):
        clean, rows = many(20), rows_of(prepared)
        atoms = len(clean.pos)
        assert torch.equal(prepared.pos[:atoms], clean.pos)
        assert not corruption_of(prepared).mask[:atoms].any()
        assert torch.equal(rows["forces"].mask[:atoms], clean.fixed == 0)
        assert rows["energy"].mask[:20].all()

    def test_copies_are_corrupted_as_the_structures_would_be(self, prepared):
        alone = DeNS(prob=0.5).prepare(many(20), EPOCH)
        chosen = corrupted_structures(alone, corruption_of(alone).mask)
        assert prepared.sid[20:].tolist() == chosen.nonzero().view(-1).tolist()
        atoms = chosen[alone.batch]
        assert torch.equal(prepared.pos[len(alone.pos) :], alone.pos[atoms])
        assert torch.equal(corruption_of(prepared).forces[len(alone.pos) :], corruption_of(alone).forces[atoms])
        assert torch.equal(rows_of(prepared)[NOISE].mask[len(alone.pos) :], rows_of(alone)[NOISE].mask[atoms])

    def test_labels_of_copies_may_be_left_out(self):
        objective = DeNS(prob=0.5, keep_labels=True, energy_of_corrupted=False, forces_of_corrupted=False)
        rows = rows_of(objective.prepare(many(20), EPOCH))
        assert rows["energy"].mask.nonzero().view(-1).tolist() == list(range(20))
        assert rows["energy"].count == 20
        assert not rows["forces"].mask[len(many(20).pos) :].any()

    def test_fields_follow_their_structures(self, prepared):
        clean = many(20)
        for index in range(20, prepared.num_graphs):
            sid, atoms = prepared.sid[index], prepared.batch == index
            assert torch.equal(prepared.atomic_numbers[atoms], clean.atomic_numbers[clean.batch == sid])
            assert torch.equal(prepared.cell[index], clean.cell[sid])
            assert prepared.energy[index] == clean.energy[sid]
        assert prepared.ptr.diff().tolist() == prepared.natoms.tolist()
        assert len(prepared.to_data_list()) == prepared.num_graphs


def test_dropped_labels_are_those_of_dens_and_nothing_moves():
    batch = many(20)
    control, method = (DeNS(prob=0.5, only_drop_labels=drop).prepare(batch, EPOCH) for drop in (True, False))
    assert torch.equal(control.pos, batch.pos)
    assert not corruption_of(control).forces.any()
    assert torch.equal(rows_of(control)["forces"].mask, rows_of(method)["forces"].mask)
    assert rows_of(control)["forces"].count == rows_of(method)["forces"].count
    assert not rows_of(control)[NOISE].mask.any()


def test_ablation_without_energy_of_corrupted_structures():
    batch = many(20)
    rows = rows_of(DeNS(prob=0.5, energy_of_corrupted=False).prepare(batch, EPOCH))["energy"]
    assert 0 < rows.mask.sum() < 20
    assert rows.count == 20  # the mean stays one over the batch, as in Algorithm 1


def test_all_atoms_moves_fixed_ones_too():
    prepared = DeNS(prob=1.0, corrupt_ratio=None, all_atoms=True).prepare(random_batch((10,)), EPOCH)
    assert corruption_of(prepared).mask.all()
    assert rows_of(prepared)[NOISE].mask.all()


def test_denominators():
    batch = random_batch((40, 40))
    joint = rows_of(DeNS(prob=1.0).prepare(batch, EPOCH))
    own = rows_of(DeNS(prob=1.0, denominators="own").prepare(batch, EPOCH))
    assert joint["forces"].count == joint[NOISE].count == free_atoms(batch).sum()
    for name in ("forces", NOISE):
        assert own[name].count == own[name].mask.sum() > 0


def test_twice_the_sigma_is_twice_the_noise_and_the_same_target():
    thin, thick = (DeNS(prob=1.0, sigma=FixedSigma(sigma)) for sigma in (0.1, 0.2))
    first, second = thin.prepare(random_batch(), EPOCH), thick.prepare(random_batch(), EPOCH)
    assert torch.allclose(2 * corruption_of(first).noise, corruption_of(second).noise)
    assert torch.allclose(thin.targets(first)[NOISE], thick.targets(second)[NOISE], atol=1e-6)


class TestLadder:
    ladder = SigmaLadder(low=0.01, high=0.5, levels=50)

    def test_is_geometric_from_low_to_high(self):
        rungs = self.ladder.sample((torch.arange(50) + 0.5) / 50)
        assert torch.allclose(rungs[[0, -1]], torch.tensor([0.01, 0.5]))
        assert torch.allclose(rungs[1:] / rungs[:-1], torch.full((49,), 50 ** (1 / 49)), rtol=1e-5)

    def test_has_one_rung_per_structure(self):
        prepared = DeNS(prob=1.0, corrupt_ratio=None, sigma=self.ladder).prepare(many(200), EPOCH)
        corruption = corruption_of(prepared)
        assert len(corruption.sigma.unique()) > 30
        scaled = corruption.noise / corruption.sigma[prepared.batch, None]
        assert abs(scaled[corruption.mask].var() - 1) < 0.1

    def test_normalised_by_its_own_sigma_or_the_largest(self):
        own = DeNS(prob=1.0, sigma=self.ladder)
        largest = DeNS(prob=1.0, sigma=SigmaLadder(0.01, 0.5, 50, "largest"))
        prepared = own.prepare(random_batch(), EPOCH)
        corruption = corruption_of(prepared)
        sigma = corruption.sigma[prepared.batch, None]
        assert torch.allclose(own.targets(prepared)[NOISE] * sigma, corruption.noise)
        assert torch.allclose(largest.targets(prepared)[NOISE] * 0.5, corruption.noise)


class TestEligibility:
    def corrupted(self, batch, epoch=1, **limits):
        objective = DeNS(prob=1.0, corrupt_ratio=limits.pop("ratio", None), eligibility=Eligibility(**limits))
        mask = corruption_of(objective.prepare(batch, StructureRandom(3, epoch))).mask
        return [bool(mask[batch.batch == index].any()) for index in range(batch.num_graphs)]

    def test_min_atoms(self):
        assert self.corrupted(random_batch((4, 10)), min_atoms=5) == [False, True]

    def test_max_force(self):
        batch = random_batch((6, 6))
        batch.forces[0, 0] = 50.0
        assert self.corrupted(batch, max_force=20) == [False, True]

    def test_max_net_force(self):
        batch = random_batch((6, 6))
        batch.forces[:6] += 3.0
        batch.forces[6:] -= batch.forces[6:].mean(0)
        assert self.corrupted(batch, max_net_force=1.0) == [False, True]

    def test_max_stress(self):
        batch = random_batch((6, 6))
        batch.stress = torch.stack([torch.eye(3), 0.01 * torch.eye(3)])
        assert self.corrupted(batch, max_stress=0.1) == [False, True]

    def test_max_share(self):
        assert self.corrupted(random_batch((6, 6)), max_share=0.4) == [False, False]  # half are free and corrupted
        assert self.corrupted(random_batch((6, 6)), max_share=0.6) == [True, True]

    def test_first_epochs(self):
        batch = random_batch((6,))
        assert self.corrupted(batch, epoch=1, first_epochs=2) == [True]
        assert self.corrupted(batch, epoch=2, first_epochs=2) == [False]

    def test_md(self):
        batch = random_batch((6, 6))
        batch[MD] = [True, False]
        assert self.corrupted(batch) == [False, True]


def test_coefficient_decays_linearly_to_its_floor():
    objective = DeNS(coefficient=10, decay_to=0.2)
    assert [objective.coefficients(p)[NOISE] for p in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([10, 6, 2, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prob": 1.5}, "prob must be a probability in .*got 1.5"),
        ({"prob": -0.1}, "prob"),
        ({"prob": float("nan")}, "prob"),
        ({"prob": "often"}, "prob must be a number, got 'often'"),
        ({"sigma": 0}, "sigma must be a positive"),
        ({"sigma": -0.1}, "sigma must be a positive"),
        ({"sigma": float("inf")}, "sigma"),
        ({"sigma": {"low": 0.1}}, "lacks high"),
        ({"sigma": {"low": 0.5, "high": 0.1}}, "above sigma.low"),
        ({"sigma": {"low": 0.1, "high": 0.5, "levels": 1}}, "at least 2"),
        ({"sigma": {"low": 0.1, "high": 0.5, "normalise_by": "mine"}}, "'own' or 'largest'"),
        ({"corrupt_ratio": 0}, "corrupt_ratio.*prob: 0 to train without"),
        ({"corrupt_ratio": 1.1}, "corrupt_ratio"),
        ({"coefficient": -1}, "coefficient"),
        ({"denominators": "both"}, "denominators must be"),
        ({"decay_to": 2}, "decay_to"),
        ({"encode_scale": 0}, "encode_scale must be finite and above 0, got 0; 1 encodes eV/Å"),
        ({"keep_labels": True, "only_drop_labels": True}, "exclude each other"),
        ({"eligibility": {"max_force": 0}}, "eligibility.max_force"),
        ({"eligibility": {"max_forse": 1}}, "did you mean 'max_force'"),
        ({"encode_forces": "no"}, "true or false"),
        ({"corupt_ratio": 0.5}, "unknown key 'corupt_ratio' in task.objective; did you mean 'corrupt_ratio'"),
    ],
)
def test_impossible_settings_name_key_and_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        DeNS.from_settings(settings, free_only=True)


def test_settings_from_yaml():
    objective = DeNS.from_settings(
        {"prob": "1e-1", "sigma": {"low": 0.01, "high": 0.5}, "corrupt_ratio": None, "decay_to": 0}, free_only=False
    )
    assert objective == DeNS(prob=0.1, sigma=SigmaLadder(0.01, 0.5), corrupt_ratio=None, decay_to=0.0, free_only=False)


def test_needs_forces_to_encode_and_stress_to_compare():
    assert set(DeNS(labels=(ENERGY,)).needs) == {"forces"}
    assert set(DeNS(encode_forces=False).needs) == set()
    assert set(DeNS(encode_forces=False, eligibility=Eligibility(max_stress=0.1)).needs) == {"stress"}


def test_metrics_are_in_physical_units():
    objective, batch = DeNS(prob=1.0, sigma=FixedSigma(0.2)), random_batch((30,))
    prepared = objective.prepare(batch, EPOCH)
    outputs = {"energy": batch.energy + 0.5, "forces": batch.forces, NOISE: objective.targets(prepared)[NOISE] + 1}
    metrics = objective.metrics(outputs, prepared)
    assert metrics["noise_mae"].mean() == pytest.approx(0.2, rel=1e-4)
    assert metrics["energy_corrupted_mae"].mean() == pytest.approx(0.5)
    assert metrics["forces_uncorrupted_mae"].total() == 0
    assert metrics["forces_clean_mae"].number() == metrics["energy_clean_mae"].number() == 0
