from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from dens_plugin import compat
from dens_plugin.checks.trust import require_plain_files
from dens_plugin.training.checkpoints import newest_whole


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_is_light():
    """The package can be imported without torch or fairchem being loaded."""
    done = run("import sys, dens_plugin; print({'torch', 'fairchem'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_unknown_public_name():
    done = run("import dens_plugin; dens_plugin.Dens")
    assert "has no attribute 'Dens'; it offers" in done.stderr


def test_real_packages_win_over_stand_ins(tmp_path):
    """A torch_scatter anywhere earlier on the path is the one that is imported."""
    package = tmp_path / "torch_scatter"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = 'real'")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run(f"{path}; import dens_plugin, torch_scatter as t; print(t.__version__)").stdout.strip() == "real"


class TestScatter:
    def test_against_a_loop(self):
        torch_scatter = pytest.importorskip("torch_scatter")
        src, index = torch.randn(7, 3), torch.tensor([0, 2, 2, 0, 3, 3, 3])
        for reduce, function in (("sum", torch.sum), ("mean", torch.mean), ("max", torch.amax), ("min", torch.amin)):
            out = torch_scatter.scatter(src, index, dim=0, dim_size=5, reduce=reduce)
            for row in (0, 2, 3):
                assert torch.allclose(out[row], function(src[index == row], 0))
            assert not out[[1, 4]].any()

    def test_broadcast_index_and_last_dimension(self):
        torch_scatter = pytest.importorskip("torch_scatter")
        src, index = torch.randn(2, 4), torch.tensor([0, 1, 1, 0])
        expected = torch.stack([src[:, [0, 3]].sum(1), src[:, [1, 2]].sum(1)], 1)
        assert torch.allclose(torch_scatter.scatter(src, index), expected)
        assert torch.allclose(torch_scatter.scatter(src.T, index[:, None].expand(4, 2), dim=0), expected.T)

    def test_segment_csr(self):
        torch_scatter = pytest.importorskip("torch_scatter")
        src = torch.arange(6.0)
        assert torch_scatter.segment_csr(src, torch.tensor([0, 2, 2, 6])).tolist() == [1.0, 0.0, 14.0]


def test_sparse_tensor_says_what_is_missing():
    torch_sparse = pytest.importorskip("torch_sparse")
    if "dens_plugin" not in torch_sparse.__version__:
        pytest.skip("the real torch-sparse is installed")
    with pytest.raises(ImportError, match="needs the package torch-sparse"):
        torch_sparse.SparseTensor(row=None)


class TestRadiusGraph:
    @pytest.fixture
    def points(self):
        return torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) * 4, torch.arange(30) // 12

    def test_has_all_pairs_within_the_cutoff(self, points):
        x, batch = points
        edges = compat.radius_graph(x, 1.5, batch, max_num_neighbors=100)
        close = (torch.cdist(x, x) <= 1.5) & (batch[:, None] == batch) & ~torch.eye(30, dtype=torch.bool)
        assert set(map(tuple, edges.T.tolist())) == set(map(tuple, close.nonzero().tolist()))
        assert torch.equal(edges[1], edges[1].sort().values)

    def test_keeps_the_nearest(self, points):
        x, batch = points
        edges = compat.radius_graph(x, 10.0, batch, max_num_neighbors=3)
        for centre in range(30):
            found = (x[edges[0][edges[1] == centre]] - x[centre]).norm(dim=1)
            others = (x[(batch == batch[centre])] - x[centre]).norm(dim=1).sort().values
            assert torch.allclose(found, others[1:4])

    def test_without_pairs(self):
        assert compat.radius_graph(torch.tensor([[0.0, 0, 0], [0, 0, 9]]), 1.0).shape == (2, 0)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        compat.load_checkpoint(tmp_path / "none.pt")


class Foreign:
    """An object of somebody else's, in a file of weights."""


class Runs:
    """A pickle that runs code when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestReadingFiles:
    def test_plain_ones_hold_what_checkpoints_hold(self, tmp_path):
        plain = {
            "config": {"a": [1, "b", None, (2.0,)]},
            "metric": np.float64(3),
            "mean": np.zeros(2),
            "w": torch.ones(2),
        }
        torch.save(plain, tmp_path / "plain.pt")
        before = torch.serialization.get_safe_globals()
        found = compat.load_checkpoint(tmp_path / "plain.pt")
        assert found["metric"] == 3
        assert found["config"] == plain["config"]
        assert torch.serialization.get_safe_globals() == before

    def test_code_is_not_run(self, tmp_path, monkeypatch):
        torch.save({"state_dict": {}, "x": Runs(tmp_path / "ran")}, tmp_path / "evil.pt")
        for read in (compat.load_checkpoint, compat.read_tensors):
            with pytest.raises(
                ValueError, match=r"evil.pt' holds more than weights and settings \(.*open\).*DENS_TRUST"
            ):
                read(tmp_path / "evil.pt")
        assert not (tmp_path / "ran").exists()
        with pytest.raises(ValueError, match=r"model.finetune_config.starting_checkpoint: .*evil.pt' holds more than"):
            require_plain_files({"model": {"finetune_config": {"starting_checkpoint": str(tmp_path / "evil.pt")}}})
        with pytest.raises(ValueError, match=r"dataset.train.transforms.normalizer.file: .*DENS_TRUST_FILES=1"):
            require_plain_files(
                {"dataset": {"train": {"transforms": {"normalizer": {"file": str(tmp_path / "evil.pt")}}}}}
            )
        assert not (tmp_path / "ran").exists()

    def test_others_are_read_where_they_are_trusted(self, tmp_path, monkeypatch):
        torch.save({"state_dict": {}, "x": Foreign()}, tmp_path / "foreign.pt")
        with pytest.raises(ValueError, match=r"\(.*Foreign\), and reading that can run code"):
            compat.load_checkpoint(tmp_path / "foreign.pt")
        assert isinstance(compat.load_checkpoint(tmp_path / "foreign.pt", trusted=True)["x"], Foreign)
        monkeypatch.setenv(compat.TRUST, "1")
        assert isinstance(compat.load_checkpoint(tmp_path / "foreign.pt")["x"], Foreign)

    def test_text(self, tmp_path):
        (tmp_path / "config.yml").write_text("model: {name: hydra}\n")
        with pytest.raises(ValueError, match=r"config.yml' is no checkpoint but text; give the path of a .pt file"):
            compat.load_checkpoint(tmp_path / "config.yml")


@pytest.mark.parametrize(("at", "bit"), [(8, 0), (10, 0), (10, 3), (42, 0), *((at, 7) for at in range(4, 46))])
def test_a_flipped_bit_in_the_directory_of_an_archive(tmp_path, at, bit):
    """Whatever its bytes ask for: a password, an unknown compression, a part that lies nowhere."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 2, "state_dict": {"w": torch.ones(9)}}, path)
    shutil.copy(path, tmp_path / "checkpoint.1.pt")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + at] ^= 1 << bit
    path.write_bytes(content)
    found = newest_whole(tmp_path)
    assert found == (path if compat.damage(path, own=True) is None else tmp_path / "checkpoint.1.pt")
    assert found != path or bit == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; give the path of a .pt file that a training wrote"),
        (bytes(1000), "begins with zeros, as a file of which the disk has lost the content"),
        (b"\x7fELF\x02\x01\xff\xfe" * 9, "is no checkpoint but a file of another kind"),
        (b"energy: 1\n", "is no checkpoint but text"),
        ("ångström".encode()[:-1] + b"\xc3", "is no checkpoint but text"),
        (b"\x80\x04\x95nonsense", "cannot be read as a checkpoint"),
        (b"PK\x03\x04 cut short", "it may have been cut short"),
    ],
)
def test_a_file_of_something_else_is_told_as_that(tmp_path, content, said):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        compat.read_tensors(path)
    assert "Check the documentation" not in str(caught.value)


def test_an_archive_of_something_else(tmp_path):
    np.savez(tmp_path / "x.npz", mean=1.0)
    with pytest.raises(ValueError, match=r"x.npz' is an archive without weights \(mean.npy\)"):
        compat.read_tensors(tmp_path / "x.npz")
