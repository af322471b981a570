"""The benchmark of learning: when runs end, what the table says, and that a second call goes on."""

import json
import signal
import sys
import time

import pytest

from sandbox.benchmarks import learning
from sandbox.benchmarks.learning import Point
from tests.conftest import ROOT

TODO = {
    "flags": [],
    "settings": {"plain": [], "other": []},
    "seeds": [1, 2],
    "until": {"frames": 5e6, "return": 20},
    "give_up": [[1e6, -19]],
    "scores": [-19, 18],
}


def curve(*scores: float) -> list[Point]:
    """A point each half a million frames."""
    return [Point(5e5 * (i + 1), i + 1, score, 1000.0) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([], ""),
        ([-20.5], ""),
        ([-20.5, -20], "given up: below -19 at 1,000,000 frames"),
        ([-18.5, -20], ""),  # it has been better
        ([0, 0, 20.5], "its return"),
        ([0] * 10, "its frames"),
    ],
)
def test_when_a_run_ends(scores, why):
    assert learning.reason(TODO, curve(*scores)) == why


def test_a_mean_of_few_games_ends_nothing():
    few = [point._replace(games=20) for point in curve(0, 0, 21)]
    assert learning.reason(TODO, few) == ""
    assert learning.reason(TODO, [point._replace(score=-21) for point in few]) == ""
    assert learning.reason(TODO, [*curve(0), *few[1:]]) == ""
    assert learning.reason(TODO, few * 4 + curve(*[0] * 10)) == "its frames"


def write(folder, scores) -> None:
    folder.mkdir()
    lines = ["frames,hours,episode_raw_return,frames_per_sec", "1000,0.001,,900"]
    for point in curve(*scores):
        lines.append(f"{point.frames:.0f},{point.minutes / 60},{point.score},2000")
    (folder / "metrics.csv").write_text("\n".join([*lines, "9000000,9"]) + "\n")


def test_the_table_says_when_scores_were_reached_and_how_far_it_fell_after(tmp_path):
    write(tmp_path / "plain-1", [-20, -18, 18.5, 17, 19])
    write(tmp_path / "plain-2", [-20, 18])
    write(tmp_path / "other-1", [-20, -20])
    rows = [line.split("|") for line in learning.table(TODO, tmp_path)]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows if len(row) > 2]
    assert cells[0] == ["setting", "seed", "-19", "18", "last", "lowest after", "K/s"]
    assert cells[2:] == [
        ["plain", "1", "1.00 (2.0)", "1.50 (3.0)", "19.0 at 2.50", "17.0", "2.0"],
        ["plain", "2", "1.00 (2.0)", "1.00 (2.0)", "18.0 at 1.00", "18.0", "2.0"],
        ["other", "1", "", "", "-20.0 at 1.00", "", "2.0"],
    ]
    assert ["plain: 18 after 1.25 M frames (median)"] in rows


def test_the_table_passes_over_means_of_few_games(tmp_path):
    (tmp_path / "plain-1").mkdir()
    lines = ["frames,hours,episode_raw_return,frames_per_sec,games_in_mean"]
    lines += ["1000000,1,19,2000,9", "2000000,2,-15,2000,100", "3000000,3,18,2000,30"]
    (tmp_path / "plain-1" / "metrics.csv").write_text("\n".join(lines) + "\n")
    (row,) = [line.split("|") for line in learning.table(TODO, tmp_path) if "plain" in line]
    shown = [cell.strip() for cell in row[3:-2]]
    assert shown == ["2.00 (120.0)", "", "18.0 (30 games) at 3.00", ""]


@pytest.mark.slow
def test_a_second_call_goes_on_where_the_first_was_stopped(start, run_python, tmp_path):
    settings = tmp_path / "settings.json"
    flags = ["--level_name=CartPole-v1", "--agent_name=MLPAgent", "--algorithm=appo"]
    flags += ["--progress_secs=1", "--num_actors=1", "--total_environment_frames=60000"]
    todo = {"flags": flags, "settings": {"a": [], "b": ["--batch_reuse=1"]}, "seeds": [1]}
    settings.write_text(json.dumps({**todo, "scores": [15]}))
    out = tmp_path / "runs"
    script = ROOT / "sandbox" / "benchmarks" / "learning.py"
    first = start([sys.executable, script, settings, f"--out={out}"])
    deadline = time.monotonic() + 120
    while not learning.points(out / "a-1"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    assert not (out / "a-1" / "ended.json").exists()
    done = run_python("sandbox/benchmarks/learning.py", str(settings), f"--out={out}")
    assert done.returncode == 0, done.stderr
    for name in ("a-1", "b-1"):
        assert json.loads((out / name / "ended.json").read_text())["why"] == "its frames"
    assert "going on from" in (out / "a-1" / "output.log").read_text()
    assert done.stdout.count("its frames; ") == 2
    picture = tmp_path / "curves.png"
    arguments = [str(settings), f"--out={out}", f"--picture={picture}"]
    assert run_python("sandbox/benchmarks/learning.py", *arguments).returncode == 0
    assert picture.stat().st_size > 1000
