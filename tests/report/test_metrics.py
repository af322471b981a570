"""A run's numbers: what is written, where, and that a second start goes on with them."""

import csv
import functools
import resource
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from impala_torch.report import metrics, rows
from impala_torch.report.beside import Beside
from impala_torch.structures import EpisodeResult
from tests.conftest import fill

VALUES = {
    "frames": 400,
    "updates": 5,
    "frames_per_sec": 100.0,
    "updates_per_sec": 1.25,
    "total_loss": -2.5,
    "learning_rate": 0.0004,
    "policy_lag": 1.5,
    "queue_batches": 1.0,
    "batch_wait_share": 0.25,
    "actors": 3,
    "grad_norm": None,
}
LIFE = EpisodeResult(1.0, 40, None, None)
GAME = EpisodeResult(2.0, 44, 3.0, 84)


def test_a_row_in_the_csv_and_tensorboard(tmp_path):
    log = metrics.RunLog(tmp_path, "Pong", hours=1.5, games=10)
    log.episodes([LIFE, GAME])
    row = log.write(VALUES, [3, 0, 7])
    log.close()
    assert row["games"] == 11
    assert row["episode_return"] == 1.5
    assert row["episode_raw_return"] == 3.0
    assert 1.5 <= row["hours"] < 1.6
    assert (row["games_in_mean"], row["episodes_in_mean"]) == (1, 2)
    again = metrics.RunLog(tmp_path, "Pong", row["hours"], row["games"], frames=400)
    again.write({**VALUES, "frames": 800}, [0, 0, 0])
    again.close()
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["frames"]) for r in rows] == [400, 800]
    assert list(rows[0]) == list(metrics.COLUMNS)
    assert rows[0]["grad_norm"] == ""
    assert float(rows[0]["total_loss"]) == -2.5
    assert int(rows[1]["games"]) == 11
    board = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    tags = board.Tags()
    assert {
        "Pong/episode_return",
        "Pong/episode_raw_return",
        "Pong/episode_frames",
        "Pong/episode_raw_frames",
        "learner/total_loss",
        "learner/learning_rate",
        "learner/policy_lag",
        "learner/frames_per_sec",
        "learner/queue_batches",
    } <= set(tags["scalars"])
    # A point an interval: the mean over what ended in it.
    assert [e.value for e in board.Scalars("Pong/episode_return")] == [1.5]
    assert [e.value for e in board.Scalars("Pong/episode_frames")] == [42.0]
    assert [(e.step, e.value) for e in board.Scalars("Pong/episode_raw_return")] == [(400, 3.0)]
    (histogram,) = board.Histograms("Pong/actions")
    assert histogram.histogram_value.num == 10
    assert list(histogram.histogram_value.bucket) == [3, 0, 7]


def test_the_mean_is_of_the_last_games(tmp_path):
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    results = [EpisodeResult(0.0, 4, float(n), 4) for n in range(metrics.GAMES + 50)]
    log.episodes(results)
    row = log.write(VALUES, [])
    log.close()
    assert row["episode_raw_return"] == pytest.approx(sum(range(50, 150)) / 100)
    assert row["games"] == 150


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_that_was_cut_is_not_merged_with_the_next(tmp_path):
    path = tmp_path / "metrics.csv"
    for frames in (400, 800):
        log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
        log.write({**VALUES, "frames": frames}, [])
        log.close()
        whole = path.read_bytes()
        path.write_bytes(whole + whole.splitlines()[-1][:20])  # as by a kill, or a full disk
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    log.write({**VALUES, "frames": 1200}, [])
    log.close()
    assert [row["frames"] for row in rows_of(tmp_path)] == ["400", "800", "1200"]
    path.write_bytes(b"time,hou")  # the heading itself
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    log.write(VALUES, [])
    log.close()
    assert [list(row) for row in rows_of(tmp_path)] == [list(metrics.COLUMNS)]


def test_tensorboard_forgets_what_is_gone_through_again(tmp_path):
    for start, steps in ((0, (100, 200, 300)), (200, (250, 350))):
        log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0, frames=start)
        for frames in steps:
            log.write({**VALUES, "frames": frames}, [])
        log.close()
    board = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in board.Scalars("learner/total_loss")] == [100, 200, 250, 350]


def test_a_full_disk_costs_rows_and_no_training(small_disk, caplog):
    filler = small_disk / "filler"
    log = metrics.RunLog(small_disk, "Pong", hours=0, games=0)
    for frames in (100, 200):
        log.write({**VALUES, "frames": frames}, [1, 2])
        log.flush()
        fill(filler)
    for frames in range(300, 40_000, 100):  # what room a file has left in its last page is used
        log.write({**VALUES, "frames": frames}, [1, 2])
    log.flush()
    assert len(log.troubles) == 2
    assert all("No space left on device" in words for words in log.troubles)
    filler.unlink()
    log.write({**VALUES, "frames": 50_000}, [1, 2])
    log.close()
    assert log.troubles == []
    told = [record.getMessage() for record in caplog.records]
    assert sum("training goes on" in words for words in told) == 2  # once for each file
    assert sum("is written again" in words for words in told) == 2
    whole = rows_of(small_disk)
    assert all(row["learning_rate"] == "0.0004" and None not in row for row in whole)
    assert {whole[0]["frames"], whole[-1]["frames"]} == {"100", "50000"}
    board = EventAccumulator(str(small_disk), size_guidance={"scalars": 0}).Reload()
    steps = [e.step for e in board.Scalars("learner/total_loss")]
    assert (steps[0], steps[-1]) == (100, 50_000)


def test_a_metrics_file_that_takes_nothing_is_told_and_tensorboard_is_written(tmp_path, caplog):
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    for frames in (100, 200):
        log.write({**VALUES, "frames": frames}, [])
    log.close()
    assert caplog.text.count("metrics.csv cannot be written: No space left on device") == 1
    board = EventAccumulator(str(tmp_path)).Reload()
    assert len(board.Scalars("learner/total_loss")) == 2
    assert rows.read(tmp_path / "metrics.csv") == []  # and not without end


def test_a_service_that_fails_or_hangs_holds_up_no_file(tmp_path, caplog):
    may_go_on, taken = threading.Event(), []

    def service(row):
        may_go_on.wait(30)
        taken.append(row["frames"])
        if len(taken) < 3:
            raise ConnectionError("no route")

    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0, also={"The service": service})
    for frames in (100, 200, 300):
        log.write({**VALUES, "frames": frames}, [])
    log.flush()
    assert [row["frames"] for row in rows_of(tmp_path)] == ["100", "200", "300"]
    may_go_on.set()
    log.close()
    assert taken == [100, 200, 300]
    assert caplog.text.count("The service cannot be written: ConnectionError: no route") == 1
    assert "The service is written again; 2 row(s) are missing" in caplog.text


def test_without_a_file_descriptor_rows_wait_for_one(tmp_path, caplog):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    log.write(VALUES, [])  # what is imported by it, is
    log.flush()
    log.close()
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    with open("/dev/null") as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), before[1]))
        try:
            log.write({**VALUES, "frames": 800}, [])
            log.flush()
            assert "Too many open files" in caplog.text
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    log.write({**VALUES, "frames": 1200}, [])
    log.close()
    assert [row["frames"] for row in rows_of(tmp_path)] == ["400", "1200"]


def test_what_waits_to_be_written_is_bounded_and_keeps_nobody_waiting():
    may_go_on, done = threading.Event(), []
    beside = Beside("test", capacity=3)
    assert beside.give(lambda: may_go_on.wait(30))  # a disk that does not answer
    taken = [beside.give(functools.partial(done.append, number)) for number in range(10)]
    assert 2 <= sum(taken) <= 3  # the thread may have begun with the first, or not yet
    assert not beside.flush(0.1)
    assert not beside.close(0.1)
    may_go_on.set()
    assert beside.close(30)
    assert done == list(range(sum(taken)))


def test_the_line_says_what_one_wants_to_know(tmp_path):
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    assert "return none yet" in metrics.progress_line(log.write(VALUES, []), 4400)
    log.episodes([GAME])
    line = metrics.progress_line(log.write(VALUES, []), 4400)
    log.close()
    assert line == (
        "frames 400 (9.1%)  100 frames/s  return 3.0 (last 1 games)  lag 1.5  queue 1.0  "
        "actors 3  left 0:00:40"
    )


@pytest.mark.parametrize(
    ("secs", "text"),
    [
        (0, "0:00:00"),
        (3661, "1:01:01"),
        (90061, "1 d 1:01:01"),
        (1e12, "> 100 days"),
        (-5, "0:00:00"),
    ],
)
def test_durations(secs, text):
    assert metrics.duration(secs) == text
