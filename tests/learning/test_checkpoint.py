"""Checkpoints: whole or not at all, the newest valid one, nothing unpickled."""

import json
import pathlib
import pickle

import pytest
import torch

from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from tests.conftest import fill


def state_of(frames):
    return {
        "model": {"weight": torch.full((3,), float(frames))},
        "optimizer": {"state": {}},
        "frames": frames,
        "config": {"agent_name": "A", "level_name": "L"},
    }


def test_the_newest_is_restored_and_old_ones_go(tmp_path):
    assert checkpoint.restore(tmp_path) is None
    for frames in (10, 200, 3000, 40000):
        checkpoint.save(tmp_path, frames, state_of(frames), keep=2)
    state = checkpoint.restore(tmp_path)
    assert state["frames"] == 40000
    assert torch.equal(state["model"]["weight"], torch.full((3,), 40000.0))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint-3000.pt",
        "checkpoint-40000.pt",
    ]
    assert json.loads((tmp_path / "checkpoint.json").read_text())["newest"] == "checkpoint-40000.pt"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, damage, caplog):
    checkpoint.save(tmp_path, 1, state_of(1), keep=3)
    newest = checkpoint.save(tmp_path, 2, state_of(2), keep=3)
    data = newest.read_bytes()
    if damage == "gone":
        newest.unlink()
    elif damage == "flipped":
        at = data.index(torch.full((3,), 2.0).numpy().tobytes())
        newest.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    else:
        newest.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    assert checkpoint.restore(tmp_path)["frames"] == 1
    assert damage == "gone" or "checkpoint-2.pt is damaged" in caplog.text


@pytest.mark.parametrize("where", ["model", "optimizer", "algorithm"])
def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path, where, caplog):
    checkpoint.save(tmp_path, 1, state_of(1), keep=3)
    bad = {"layer": {0: torch.tensor([1.0, float("inf")])}}
    newest = checkpoint.save(tmp_path, 2, {**state_of(2), where: bad}, keep=3)
    assert checkpoint.restore(tmp_path)["frames"] == 1
    assert "checkpoint-2.pt is damaged and passed over" in caplog.text
    with pytest.raises(UserError, match="its numbers are not all finite"):
        checkpoint.load(newest)


def test_a_damaged_or_missing_index_loses_nothing(tmp_path):
    checkpoint.save(tmp_path, 5, state_of(5), keep=3)
    checkpoint.save(tmp_path, 6, state_of(6), keep=3)
    (tmp_path / "checkpoint.json").write_text("{")
    assert checkpoint.restore(tmp_path)["frames"] == 6
    (tmp_path / "checkpoint.json").unlink()
    assert checkpoint.restore(tmp_path)["frames"] == 6


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    path = checkpoint.save(tmp_path, 7, state_of(7), keep=3)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of the 1 checkpoint"):
        checkpoint.restore(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_a_checkpoint_cannot_run_code(tmp_path):
    trap = tmp_path / "trap"
    torch.save({**state_of(8), "model": Evil(str(trap))}, tmp_path / "checkpoint-8.pt")
    with pytest.raises(UserError):
        checkpoint.restore(tmp_path)
    assert not trap.exists()
    # The trap works: only weights_only loading kept it shut.
    pickle.loads(pickle.dumps(Evil(str(trap))))
    assert trap.exists()


def test_a_full_disk_leaves_the_checkpoints_that_there_are(small_disk):
    large = {**state_of(1), "optimizer": {"state": torch.zeros(50_000)}}
    checkpoint.save(small_disk, 1, large, keep=3)
    fill(small_disk / "filler")
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(small_disk, 2, {**large, "frames": 2}, keep=3)
    assert checkpoint.restore(small_disk)["frames"] == 1
    assert not list(small_disk.glob(".checkpoint*"))
    (small_disk / "filler").unlink()
    checkpoint.save(small_disk, 3, {**large, "frames": 3}, keep=3)
    assert checkpoint.restore(small_disk)["frames"] == 3


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"old")

    def broken(_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("agent_name", "B"),
        ("level_name", "M"),
        ("normalize_observations", True),
        ("normalize_values", True),
        ("algorithm", "appo"),
    ],
)
def test_another_agents_checkpoint_is_named(flag, value):
    # The checkpoint is of before some of these flags were there.
    ours = Config(agent_name="A", level_name="L")
    checkpoint.check_matches(state_of(1), ours, "algorithm")
    with pytest.raises(UserError, match=f"--{flag}=.*, not {value}"):
        checkpoint.check_matches(state_of(1), ours.replace(**{flag: value}), "algorithm")
