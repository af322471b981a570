"""Weights & Biases: its real client, offline; what it has written is read back from its files."""

import json
import struct
import sys

import pytest

from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.report import wandb_log
from tests.conftest import ROOT
from tests.test_experiment import CARTPOLE, metrics_of

wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")

KEY = "5ec2e7" * 6 + "abcd"  # of the form that the client accepts
_HEADER, _BLOCK = 7, 32768


def records_of(path) -> list:
    """All records of a .wandb file, which is LevelDB's log format with a header of its own."""
    data, place, parts, found = path.read_bytes(), _HEADER, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # a block's rest is too small for another piece
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def only_run(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return records_of(path)


def rows_of(records) -> list[dict]:
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.WhichOneof("record_type") == "history"
    ]


def begun(records):
    return next(one.run for one in records if one.WhichOneof("record_type") == "run")


WRITE = """
import pathlib, sys
from impala_torch.flags.config import Config
from impala_torch.report.wandb_log import WandbLog
config = Config(
    with_wandb=True, wandb_user="me", wandb_group="g", wandb_tags="a, b,", seed=7,
    key_file="/home/me/run.key", learner_host="10.1.2.3:8001",
)
log = WandbLog(config, pathlib.Path(sys.argv[1]))
for update in range(3):
    row = {"frames": 100 * update, "total_loss": update / 2, "episode_return": None}
    log.write({**row, "grad_norm": 1.5} if update else row)
log.close()
"""


@pytest.mark.slow
def test_rows_config_and_names_are_what_the_client_keeps(run_python, tmp_path):
    logdir = tmp_path / "level" / "my run"
    logdir.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY, "SOME_TOKEN": "t0ps3cret"}
    for folder, extra in ((logdir, {}), (elsewhere, {"WANDB_DIR": str(elsewhere)})):
        flag = "--learner_host=10.1.2.3:8001"  # as a command line would have it
        done = run_python("-c", WRITE, logdir, flag, env={**env, **extra})
        assert done.returncode == 0, done.stderr
        records = only_run(folder)
        rows = rows_of(records)
        assert [row["frames"] for row in rows] == [0, 100, 200]
        assert [row["total_loss"] for row in rows] == [0, 0.5, 1]
        assert "episode_return" not in rows[0]
        assert "grad_norm" not in rows[0]
        assert rows[2]["grad_norm"] == 1.5
        run = begun(records)
        assert (run.entity, run.project, run.run_group) == ("me", "impala_torch", "g")
        assert (run.job_type, run.display_name) == ("train", "level/my run")
        assert list(run.tags) == ["a", "b"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["seed"] == 7
        assert config["level_name"] == Config().level_name
        # A second start goes on with the same run, wherever the client keeps its files.
        assert run.run_id == (logdir / "wandb_id.txt").read_text().strip()
        assert run.run_id.startswith("my-run-")
        steps = [
            one.metric
            for one in records
            if one.WhichOneof("record_type") == "metric" and one.metric.step_metric
        ]
        assert {one.step_metric for one in steps} == {"frames"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (KEY, "t0ps3cret", "run.key", "10.1.2.3"):
        assert secret.encode() not in written
        assert secret not in done.stdout + done.stderr


@pytest.mark.slow
def test_training_logs_every_row_of_its_metrics(run_python, tmp_path):
    logdir = tmp_path / "run"
    done = run_python(
        *("experiment.py", *CARTPOLE, f"--logdir={logdir}", "--num_actors=1"),
        *("--total_environment_frames=10000", "--with_wandb=True", "--wandb_project=p"),
        env={"WANDB_MODE": "offline"},
    )
    assert done.returncode == 0, done.stderr
    assert "Weights & Biases: " in done.stderr
    records = only_run(logdir)
    assert begun(records).project == "p"
    written = metrics_of(logdir)
    rows = rows_of(records)
    assert [str(row["frames"]) for row in rows] == [row["frames"] for row in written]
    filled = {name for name, value in written[-1].items() if value}
    assert filled <= set(rows[-1])
    assert rows[-1]["episode_raw_return"] == pytest.approx(
        float(written[-1]["episode_raw_return"]), rel=1e-4
    )
    (ended,) = [one.exit for one in records if one.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0


@pytest.mark.slow
def test_without_an_account_training_does_not_begin(run_python, tmp_path):
    logdir = tmp_path / "run"
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "online"}
    done = run_python(
        *(ROOT / "experiment.py", *CARTPOLE, "--with_wandb", f"--logdir={logdir}"),
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "run 'wandb login' once, or set WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not logdir.exists()


def test_without_its_client_training_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install wandb==[\d.]+'"):
        wandb_log.check(Config(with_wandb=True))
    wandb_log.check(Config())


def test_it_asks_for_the_client_that_was_tested():
    pinned = (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    assert f"wandb=={wandb_log.VERSION}" in pinned


def test_a_tag_that_would_be_refused_is_told(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="--wandb_tags"):
        wandb_log.check(Config(with_wandb=True, wandb_tags="fine," + 65 * "x"))


@pytest.mark.slow
def test_nobody_else_loads_the_client(run_python):
    script = "import sys, impala_torch.learner; assert 'wandb' not in sys.modules"
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
