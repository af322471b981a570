"""TensorBoard on the runs that match, and its end."""

import json
import signal
import sys
import time
import urllib.request

import pytest

from impala_torch import tb
from impala_torch.flags.errors import UserError
from impala_torch.report.metrics import RunLog


@pytest.fixture
def logs(tmp_path):
    """Three runs that TensorBoard can read, and a folder that is none."""
    for name in ("Pong/wild-1", "Pong/cards-1", "Breakout/wild-2"):
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        run = RunLog(folder, "Pong", 0.0, 0)
        run.write({"frames": 100, "updates": 1}, [1, 2])
        run.close()
    (tmp_path / "logs" / "empty").mkdir()
    (tmp_path / "logs" / "latest").symlink_to("Pong/wild-1")
    return tmp_path / "logs"


def test_patterns_match_names_or_parts_of_them(logs):
    names = list(tb.runs(logs))
    assert sorted(names) == ["Breakout/wild-2", "Pong/cards-1", "Pong/wild-1"]
    assert sorted(tb.matching(names, ["wild*"])) == ["Breakout/wild-2", "Pong/wild-1"]
    assert sorted(tb.matching(names, ["Pong"])) == ["Pong/cards-1", "Pong/wild-1"]
    assert tb.matching(names, ["Pong/c*"]) == ["Pong/cards-1"]
    assert sorted(tb.matching(names, [])) == sorted(names)
    assert len(tb.matching(names, ["wild*", "Pong*"])) == 3


def test_what_matches_nothing_is_told_with_what_there_is(logs, capsys):
    with pytest.raises(UserError, match="'tame' matches no run; there are: Breakout/wild-2, "):
        tb.matching(sorted(tb.runs(logs)), ["tame"])
    assert tb.main(["--logs", str(logs / "empty")]) == 2
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.slow
def test_tensorboard_shows_them_and_ends_with_ctrl_c(logs, start, free_port):
    port = free_port()
    job = start(
        [sys.executable, "-m", "impala_torch.tb", "wild*", f"--logs={logs}", f"--port={port}"]
    )
    url = f"http://127.0.0.1:{port}/data/runs"
    deadline = time.monotonic() + 120
    shown: list[str] = []
    while len(shown) < 2:
        assert job.poll() is None
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                shown = json.load(answer)
        except OSError:
            time.sleep(0.5)
    assert sorted(shown) == ["Breakout_wild-2", "Pong_wild-1"]
    job.send_signal(signal.SIGINT)
    assert job.wait(30) == 0
    with pytest.raises(OSError):  # noqa: PT011 (refused: nobody listens)
        urllib.request.urlopen(url, timeout=5)
