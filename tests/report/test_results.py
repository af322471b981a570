"""The results card: from a run's own numbers."""

import json

import pytest

from impala_torch.flags.config import Config
from impala_torch.report import results, rows
from impala_torch.report.metrics import COLUMNS

CONFIG = Config(level_name="PongNoFrameskip-v4", agent_name="ShallowConvNetAgent", seed=5)


def run_with(tmp_path, returns, games=100):
    """A run directory whose whole games' mean, of ``games``, went through ``returns``."""
    lines = [",".join(COLUMNS)]
    for index, value in enumerate(returns, 1):
        row = dict.fromkeys(COLUMNS, "")
        row |= {"frames": 400_000 * index, "updates": 10 * index, "hours": index / 60}
        row |= {"games": 300 * index, "games_in_mean": games, "episode_raw_return": value}
        lines.append(",".join(str(row[name]) for name in COLUMNS))
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def write(logdir) -> dict:
    """The card of a run whose rows were all written."""
    known = rows.read(logdir / "metrics.csv")
    last = known[-1] if known else {}
    counts = {name: int(last.get(name) or 0) for name in ("frames", "games", "updates")}
    return results.write(logdir, CONFIG, {**counts, "skipped": 0, "hours": last["hours"]})


def test_counts_do_not_hang_on_rows_that_could_not_be_written(tmp_path):
    counts = {"frames": 4000, "updates": 7, "skipped": 1, "hours": 0.5, "games": 3}
    card = results.write(tmp_path, CONFIG, counts)
    assert (card["environment_frames"], card["updates"], card["games"]) == (4000, 7, 3)
    assert (card["skipped_updates"], card["hours"]) == (1, 0.5)


def test_the_card_tells_what_was_reached_and_when(tmp_path):
    card = write(run_with(tmp_path, ["", -20.0, -10.0, 10.0, 20.0, 15.0]))
    assert json.loads((tmp_path / "results.json").read_text()) == card
    assert (card["environment_frames"], card["agent_steps"]) == (2_400_000, 600_000)
    assert (card["games"], card["updates"]) == (1800, 60)
    assert card["raw_return"] == {
        "last": 15.0,
        "last_games": 100,
        "best": 20.0,
        "best_at_frames": 2_000_000,
        "best_at_hours": pytest.approx(5 / 60),
    }
    assert card["episode_return"]["last"] is None
    reached = [(one["return"], one["frames"]) for one in card["to_score"]]
    assert reached == [(-10, 1_200_000), (0, 1_600_000), (10, 1_600_000), (20, 2_000_000)]
    assert card["protocol"]["level_name"] == "PongNoFrameskip-v4"
    assert card["protocol"]["life_loss_ends_episode"] is True
    assert card["protocol"]["reward_clipping"] == "abs_one"
    table = "\n".join(results.lines(card))
    assert "mean return 15.00, best 20.00" in table
    assert "after 2.00 M frames, 0:05:00" in table


def test_a_run_without_a_game_has_a_card_too(tmp_path):
    card = write(run_with(tmp_path, [""]))
    assert card["to_score"] == []
    assert "none has ended" in "\n".join(results.lines(card))


def test_a_mean_of_few_games_is_told_with_their_number_and_is_no_best(tmp_path):
    card = write(run_with(tmp_path, [1.0, 0.25], games=20))
    assert card["to_score"] == []
    assert (card["raw_return"]["best"], card["raw_return"]["last"]) == (None, 0.25)
    words = "mean return 0.25 (of 20), best unknown: no mean is of 100"
    assert words in "\n".join(results.lines(card))
    # A start that goes on begins with few games again.
    path = tmp_path / "metrics.csv"
    heading, *before = path.read_text().splitlines()
    full = [line.replace(",20,", ",100,") for line in before]
    path.write_text("\n".join([heading, *full, before[0].replace("400000", "1200000")]) + "\n")
    card = write(tmp_path)
    assert (card["raw_return"]["best"], card["raw_return"]["last_games"]) == (1.0, 20)
    assert card["raw_return"]["best_at_frames"] == 400_000
    # Before the number was written down, there were at most the run's games.
    path.write_text("frames,hours,games,episode_raw_return\n100,1,9,7\n200,2,130,3\n300,3,140,4\n")
    card = write(tmp_path)
    assert (card["raw_return"]["best"], card["to_score"][0]["frames"]) == (4.0, 300)


def test_what_a_later_start_went_through_again_counts_as_it_was_then(tmp_path):
    path = tmp_path / "metrics.csv"
    lines = ["frames,hours,games,episode_raw_return", "100,1,200,1", "200,2,300,50", "300,3,400,9"]
    path.write_text("\n".join([*lines, "150,2,250,2", "250,3,350,3", "400,"]))  # from 100 on
    assert [(row["frames"], row["episode_raw_return"]) for row in rows.read(path)] == [
        *((100, 1), (150, 2), (250, 3)),  # the last is not whole
    ]
    card = write(tmp_path)
    assert (card["raw_return"]["best"], card["environment_frames"]) == (3.0, 250)


def test_a_return_that_is_no_number_is_not_the_best(tmp_path):
    card = write(run_with(tmp_path, ["nan", 1.0, "inf", 2.0]))
    assert (card["raw_return"]["best"], card["to_score"][-1]["return"]) == (2.0, 2.0)


def test_a_run_that_never_rose_has_no_way_to_tell_of(tmp_path):
    assert write(run_with(tmp_path, [-20.0, -20.5]))["to_score"] == []
