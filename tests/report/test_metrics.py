"""A run's numbers: what is written, where, and that a second start goes on with them."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from impala_torch.report import metrics
from impala_torch.structures import EpisodeResult

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
    log.episodes([LIFE, GAME], frames=400)
    row = log.write(VALUES, [3, 0, 7])
    log.close()
    assert row["games"] == 11
    assert row["episode_return"] == 1.5
    assert row["episode_raw_return"] == 3.0
    assert 1.5 <= row["hours"] < 1.6
    again = metrics.RunLog(tmp_path, "Pong", hours=row["hours"], games=row["games"])
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
    assert [e.value for e in board.Scalars("Pong/episode_return")] == [1.0, 2.0]
    assert [(e.step, e.value) for e in board.Scalars("Pong/episode_raw_return")] == [(400, 3.0)]
    (histogram,) = board.Histograms("Pong/actions")
    assert histogram.histogram_value.num == 10
    assert list(histogram.histogram_value.bucket) == [3, 0, 7]


def test_the_mean_is_of_the_last_games(tmp_path):
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    results = [EpisodeResult(0.0, 4, float(n), 4) for n in range(metrics.GAMES + 50)]
    log.episodes(results, 1)
    row = log.write(VALUES, [])
    log.close()
    assert row["episode_raw_return"] == pytest.approx(sum(range(50, 150)) / 100)
    assert row["games"] == 150


def test_the_line_says_what_one_wants_to_know(tmp_path):
    log = metrics.RunLog(tmp_path, "Pong", hours=0, games=0)
    assert "return none yet" in metrics.progress_line(log.write(VALUES, []), 4400)
    log.episodes([GAME], 400)
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
