"""Curves of runs: files of three programs as they write them, groups, pictures, the terminal."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from impala_torch.flags.config import Config, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.plot import __main__ as plot
from impala_torch.plot import chart, curves, grouping, runs, tables, terminal
from impala_torch.plot.chart import Options
from impala_torch.plot.picture import _tick
from impala_torch.report.metrics import RunLog
from tests.conftest import ROOT


def run_of_ours(
    folder: pathlib.Path, returns, frames=1000, protocol=None, games=100, **flags
) -> pathlib.Path:
    """A run directory written by the project's own log; ``frames`` between its rows."""
    folder.mkdir(parents=True)
    log = RunLog(folder, "Pong", 0.0, 0)
    for index, value in enumerate(returns, 1):
        row = {"frames": frames * index, "updates": index, "hours": index / 100}
        log.write({**row, "episode_raw_return": value, "games_in_mean": games}, [])
    log.close()
    config = Config(logdir=str(folder), level_name="PongNoFrameskip-v4", **flags)
    (folder / "config.json").write_text(json.dumps({"flags": dict(to_dict(config))}))
    if protocol is not None:
        (folder / "results.json").write_text(json.dumps({"protocol": protocol}))
    return folder


# As torchbeast's file_writer.py writes it: a header that is a comment, and fields.csv beside.
TORCHBEAST = """\
# _tick,_time,mean_episode_return,step,total_loss
0,1700000000.0,,2560,1.5
1,1700000036.0,-20.5,5120,1.25
2,1700000072.0,-19.0,7680,1.0
"""
# As the vtrace example of moolib writes it.
MOOLIB = "\t".join(["env_train_steps", "mean_episode_return", "SPS", "optimizer_steps"]) + (
    "\n1000\t-21\t500\t10\n3000\t-20\t1000\t30\n"
)


def torchbeast_run(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    (folder / "logs.csv").write_text(TORCHBEAST)
    (folder / "meta.json").write_text(json.dumps({"args": {"env": "PongNoFrameskip-v4"}}))
    return folder


def moolib_run(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    (folder / "logs.tsv").write_text(MOOLIB)
    return folder


def load(*folders: pathlib.Path) -> list[runs.Run]:
    return [runs.load(path) for path in runs.find([str(folder) for folder in folders])]


# --- reading ------------------------------------------------------------------------------------


def test_a_run_of_ours(tmp_path):
    (run,) = load(run_of_ours(tmp_path / "a", [None, -20.0, -10.0], seed=3))
    assert run.program == tables.IMPALA_TORCH
    assert run.level == "PongNoFrameskip-v4"
    assert run.column("frames").values.tolist() == [1000, 2000, 3000]
    np.testing.assert_array_equal(run.column("episode_raw_return").values, [np.nan, -20, -10])
    with pytest.raises(UserError, match="has no column 'speed'; it has time, hours, frames"):
        run.column("speed")


def test_a_run_of_torchbeast_has_our_names(tmp_path):
    (run,) = load(torchbeast_run(tmp_path / "beast"))
    assert run.program == tables.TORCHBEAST
    assert run.column("frames").values.tolist() == [4 * 2560, 4 * 5120, 4 * 7680]
    assert run.column("updates").values.tolist() == [1, 2, 3]
    np.testing.assert_allclose(run.column("hours").values, [0, 0.01, 0.02])
    np.testing.assert_array_equal(run.column("episode_raw_return").values, [np.nan, -20.5, -19])


def test_a_run_of_moolib_has_our_names(tmp_path):
    (run,) = load(moolib_run(tmp_path / "moo"))
    assert run.program == tables.MOOLIB
    assert run.column("frames", 2).values.tolist() == [2000, 6000]
    assert "--repeats says otherwise" in run.column("frames").supposed
    assert run.column("updates").values.tolist() == [10, 30]
    # 1,000 steps at 500 a second, then 2,000 at 1,000.
    np.testing.assert_allclose(run.column("hours").values, [2 / 3600, 4 / 3600])


def test_a_line_that_is_being_written_waits_and_a_damaged_one_is_told(tmp_path):
    folder = run_of_ours(tmp_path / "a", [-20.0, -10.0])
    path = folder / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "17,0.1,300")
    (run,) = load(folder)
    assert len(run.table) == 2
    assert not run.notes
    path.write_text(whole + "17,0.1\n" + whole.splitlines()[-1] + "\n")
    (run,) = load(folder)
    assert len(run.table) == 3
    assert run.notes == (f"{path}: 1 damaged line(s) left out",)


def test_wildcards_folders_and_links_mean_each_run_once(tmp_path):
    first = run_of_ours(tmp_path / "logs" / "pong" / "1", [-20.0])
    second = run_of_ours(tmp_path / "logs" / "pong" / "2", [-20.0])
    (tmp_path / "logs" / "latest").symlink_to("pong/2")
    everything = [first / "metrics.csv", second / "metrics.csv"]
    for patterns in ([str(tmp_path)], [f"{tmp_path}/logs/*/*"], [str(first), str(tmp_path)]):
        assert sorted(runs.find(patterns)) == everything
    with pytest.raises(UserError, match=r"is no run: no metrics\.csv"):
        runs.find([f"{tmp_path}/none*"])


# --- arithmetic ---------------------------------------------------------------------------------


def test_seeds_of_one_setting_make_a_mean_and_a_band(tmp_path):
    returns = [[-20.0, -10.0, 0.0], [-18.0, -14.0, 4.0], [-19.0, -6.0, 2.0]]
    folders = [
        run_of_ours(tmp_path / str(seed), values, seed=seed) for seed, values in enumerate(returns)
    ]
    other = run_of_ours(tmp_path / "other", [-20.0, -20.0, -20.0], batch_size=8)
    for band, low, high in (
        ("minmax", np.min(returns, 0), np.max(returns, 0)),
        (
            "std",
            np.mean(returns, 0) - np.std(returns, 0, ddof=1),
            np.mean(returns, 0) + np.std(returns, 0, ddof=1),
        ),
    ):
        made = chart.chart(load(*folders, other), Options(band=band))
        assert [line.label.split(" (")[0] for line in made.lines] == [
            "batch_size=2",
            "batch_size=8",
        ]
        curve = made.lines[0].curve
        for frames, column in ((1000, 0), (2000, 1), (3000, 2)):
            point = [np.interp(frames, curve.x, y) for y in (curve.y, curve.low, curve.high)]
            expected = [np.mean(returns, 0)[column], low[column], high[column]]
            np.testing.assert_allclose(point, expected, atol=0.02)
    assert len(chart.chart(load(*folders), Options(group="none")).lines) == 3
    assert len(chart.chart(load(*folders), Options(group="folder")).lines) == 1


def test_seeds_with_rows_elsewhere_meet_between_their_points():
    one = curves.Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    two = curves.Curve(np.array([5.0, 20.0]), np.array([1.0, 1.0]))
    whole = curves.together([one, two], "minmax")
    assert (whole.x[0], whole.x[-1]) == (5, 10)
    np.testing.assert_allclose(whole.y, (whole.x + 1) / 2)
    apart = curves.Curve(np.array([30.0, 40.0]), np.array([1.0, 1.0]))
    assert curves.together([one, apart], "minmax") is None


def test_smoothing_is_a_mean_of_the_last_rows():
    values = np.array([3.0, 1.0, 2.0, 6.0])
    np.testing.assert_allclose(curves.running_mean(values, 3), [3, 2, 2, 3])
    np.testing.assert_array_equal(curves.running_mean(values, 1), values)


def test_of_frames_gone_through_again_the_later_count():
    x, y = np.array([1.0, 2, 3, 2, 3, 4]), np.array([10.0, 20, 30, 21, 31, 41])
    points, replaced = curves.curve(x, y)
    assert (points.x.tolist(), points.y.tolist()) == ([1, 2, 3, 4], [10, 21, 31, 41])
    assert replaced > 0


def test_runs_of_different_protocols_are_told_by_what_differs(tmp_path):
    sticky = {"level_name": "Pong", "sticky_actions": 0.25}
    folders = [
        run_of_ours(tmp_path / "a", [-20.0], protocol=sticky),
        run_of_ours(tmp_path / "b", [-20.0], protocol={**sticky, "sticky_actions": 0.0}),
    ]
    (warning,) = chart.chart(load(*folders), Options()).warnings
    assert warning == "runs of different protocols: sticky_actions: 0.25 | 0.0"
    assert not chart.chart(load(folders[0]), Options()).warnings
    mixed = chart.chart([*load(folders[0]), *load(torchbeast_run(tmp_path / "t"))], Options())
    assert "protocol unknown: runs of TorchBeast" in mixed.warnings


def test_labels_name_what_is_peculiar(tmp_path):
    folders = [
        run_of_ours(tmp_path / "x" / name, [-20.0], batch_size=size, learning_rate=rate)
        for name, size, rate in (("a", 2, 0.1), ("b", 4, 0.1), ("c", 4, 0.2))
    ]
    groups = grouping.grouped(load(*folders), "setting")
    assert [group.label for group in groups] == [
        "batch_size=2, learning_rate=0.1",
        "batch_size=4, learning_rate=0.1",
        "batch_size=4, learning_rate=0.2",
    ]
    assert chart.chart(load(*folders), Options(labels=("p", "q", "r"))).lines[2].label == "r"
    with pytest.raises(UserError, match="2 name"):
        chart.chart(load(*folders), Options(labels=("p", "q")))


# --- pictures -----------------------------------------------------------------------------------


def test_a_png_shows_curves(tmp_path, capsys):
    folder = run_of_ours(tmp_path / "a", [-20.0, -10.0, 5.0])
    assert plot.main([str(folder)]) == 0
    picture = cv2.imread(str(folder / "plot.png"))
    assert picture.shape == (600, 960, 3)
    blue = (picture[..., 0] > 150) & (picture[..., 2] < 80)  # the first line's colour
    rows, columns = np.nonzero(blue)
    # It rises from the lower left to the upper right; the legend's line is above it on the left.
    assert columns[rows.argmax()] < 300
    assert rows.max() > 400
    assert rows[columns.argmax()] < 150
    assert columns.max() > 700
    assert "1 line(s) of 1 run(s)" in capsys.readouterr().out


def test_an_svg_keeps_its_words(tmp_path):
    folders = [
        run_of_ours(tmp_path / "a", [-20.0, -10.0], protocol={"frame_skip": 4}),
        run_of_ours(tmp_path / "b", [-20.0, 5.0], protocol={"frame_skip": 1}, batch_size=9),
    ]
    out = tmp_path / "p.svg"
    assert plot.main([*map(str, folders), f"--out={out}", "--title=A $title", "--x=hours"]) == 0
    text = out.read_text()
    for words in ("A $title", "batch_size=9", "hours of training", "frame_skip: 4 | 1"):
        assert words in text, words


def test_numbers_at_an_axis_are_short():
    values = {0: "0", 0.2: "0.2", -0.5: "-0.5", 1: "1", 1500: "1.5k", 2e7: "20M"}
    assert {value: _tick(value) for value in values} == values


def test_the_axis_of_the_terminal_is_in_the_unit_that_it_names():
    for largest, shown, name in (
        (9_999, 9_999, ""),
        (10_000, 10, ", thousands"),
        (999_999, 999.999, ", thousands"),
        (1e6, 1, ", millions"),
        (2e9, 2, ", billions"),
    ):
        line = chart.Line("a", curves.Curve(np.array([0.0, largest]), np.zeros(2)))
        unit, words = terminal._unit(chart.Chart("", "frames", "", (line,), (), ()))
        assert (largest / unit, words) == (shown, name)


def test_means_of_few_games_are_not_drawn_among_those_of_many(tmp_path):
    folder = run_of_ours(tmp_path / "a", [-20.0, -10.0])
    log = RunLog(folder, "Pong", 0.0, 0)  # a second start, whose first games are few and short
    for frames, games, value in ((3000, 9, 20.0), (4000, 100, -5.0)):
        row = {"frames": frames, "updates": 3, "games_in_mean": games}
        log.write({**row, "episode_raw_return": value}, [])
    log.close()
    (line,) = chart.chart(load(folder), Options()).lines
    assert line.curve.y.tolist() == [-20, -10, -5]
    few = run_of_ours(tmp_path / "few", [1.0, 0.5], games=20)
    drawn = chart.chart(load(few), Options())
    assert drawn.lines[0].curve.y.tolist() == [1, 0.5]
    assert drawn.warnings == ("means of at most 20 games, not of 100: few",)


def test_a_pause_of_days_is_not_training(tmp_path):
    folder = torchbeast_run(tmp_path / "beast")
    with open(folder / "logs.csv", "a") as file:
        file.write("3,1700259308.0,-18.0,10240,1.0\n4,1700259344.0,-17.0,12800,1.0\n")
    (run,) = load(folder)
    hours = run.column("hours")
    np.testing.assert_allclose(hours.values, [0, 0.01, 0.02, 0.03, 0.04])
    assert "1 pause(s) between rows, the longest of 72.0 hours" in hours.supposed


def test_the_terminal_shows_the_curve(tmp_path, capsys):
    folder = run_of_ours(tmp_path / "a", [-20.0, -10.0, 5.0])
    assert plot.main([str(folder), "--terminal"]) == 0
    shown = capsys.readouterr().out
    assert "a: 5 at 3,000" in shown
    assert "\033" not in shown  # it is no terminal
    assert sum(0x2800 < ord(char) < 0x2900 for char in shown) > 20  # braille
    assert not (folder / "plot.png").exists()


@pytest.mark.slow
def test_watching_follows_a_run_until_ctrl_c(tmp_path, start):
    folder = run_of_ours(tmp_path / "a", [-20.0])
    command = [sys.executable, "-m", "impala_torch.plot", folder, "--terminal", "--watch=0.2"]
    job = start(command, stdout=subprocess.PIPE, text=True)
    shown = ""
    while "-20 at 1,000" not in shown:
        shown += job.stdout.readline()
    log = RunLog(folder, "Pong", 0.0, 0)
    log.write({"frames": 2000, "updates": 2, "episode_raw_return": 7.5, "games_in_mean": 100}, [])
    log.close()
    deadline = time.monotonic() + 60
    while "7.5 at 2,000" not in shown:
        assert time.monotonic() < deadline
        shown += job.stdout.readline()
    job.send_signal(signal.SIGINT)
    assert job.wait(20) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--column=speed"], "has no column 'speed'"),
        (["--out=x.pdf"], "--out=x.pdf must end in .png or .svg"),
        (["--out=/none/x.png"], "--out=/none/x.png cannot be written"),
        (["--smooth=0"], "--smooth must be 1 row or more"),
        (["--watch=0"], "--watch must be more than 0 seconds"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, flags, words):
    folder = run_of_ours(tmp_path / "a", [-20.0])
    assert plot.main([str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error


def test_a_file_of_something_else_is_told(tmp_path, capsys):
    path = tmp_path / "metrics.csv"
    path.write_text("a,b\n1,2\n")
    assert plot.main([str(path)]) == 2
    assert "neither a metrics.csv of impala_torch" in capsys.readouterr().err
    path.write_text("")
    assert plot.main([str(path)]) == 2
    assert "nothing of 'episode_raw_return' to draw yet" in capsys.readouterr().err


def test_the_command_of_the_readme():
    done = subprocess.run(
        [sys.executable, "-m", "impala_torch.plot", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--terminal" in done.stdout
