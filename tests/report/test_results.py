"""The results card: from a run's own numbers."""

import json

import pytest

from impala_torch.flags.config import Config
from impala_torch.report import results
from impala_torch.report.metrics import COLUMNS

CONFIG = Config(level_name="PongNoFrameskip-v4", agent_name="ShallowConvNetAgent", seed=5)


def run_with(tmp_path, returns):
    """A run directory whose whole games' mean went through ``returns``, one row each."""
    lines = [",".join(COLUMNS)]
    for index, value in enumerate(returns, 1):
        row = dict.fromkeys(COLUMNS, "")
        row |= {"frames": 400_000 * index, "updates": 10 * index, "hours": index / 60}
        row |= {"games": 3 * index, "episode_raw_return": value}
        lines.append(",".join(str(row[name]) for name in COLUMNS))
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_card_tells_what_was_reached_and_when(tmp_path):
    card = results.write(run_with(tmp_path, ["", -20.0, -10.0, 10.0, 20.0, 15.0]), CONFIG)
    assert json.loads((tmp_path / "results.json").read_text()) == card
    assert (card["environment_frames"], card["agent_steps"]) == (2_400_000, 600_000)
    assert (card["games"], card["updates"]) == (18, 60)
    assert card["raw_return"] == {
        "last": 15.0,
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
    card = results.write(run_with(tmp_path, [""]), CONFIG)
    assert card["to_score"] == []
    assert "none has ended" in "\n".join(results.lines(card))


def test_a_run_that_never_rose_has_no_way_to_tell_of(tmp_path):
    assert results.write(run_with(tmp_path, [-20.0, -20.5]), CONFIG)["to_score"] == []
