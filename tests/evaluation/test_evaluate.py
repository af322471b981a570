"""Whole games: test mode on real runs and games, scores, levels, evaluation beside training."""

import csv
import json
import math
import os
import pathlib
import signal
import statistics
import sys

import numpy as np
import pytest
import torch
from ale_py import roms

from impala_torch import agents, environments
from impala_torch.acting.player import Player
from impala_torch.endpoint import keys as curve
from impala_torch.evaluation import atari_scores, games, run_finder, scorebook, test_mode
from impala_torch.evaluation.games import Game, Scores
from impala_torch.flags.config import Config, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report import provenance
from impala_torch.structures import LevelOptions
from tests.conftest import ROOT
from tests.test_experiment import CARTPOLE, has_frames, processes_with, wait_until


def save_run(folder: pathlib.Path, frames: int = 4000, seed: int = 0, **flags) -> Config:
    """A run's directory with a checkpoint of an untrained agent."""
    config = Config(**flags)
    spec = environments.spec_for(config)
    torch.manual_seed(seed)
    agent = agents.make_agent(config.agent_name, spec)
    folder.mkdir(parents=True, exist_ok=True)
    state = {"model": agent.state_dict(), "config": dict(to_dict(config)), "frames": frames}
    checkpoint.save(folder, frames, {**state, "updates": 10, "hours": 0.5}, 3)
    (folder / "config.json").write_text(json.dumps({"flags": dict(to_dict(config))}))
    return config


def test_config(folder: pathlib.Path, **flags) -> Config:
    return Config(mode="test", logdir=str(folder), test_num_episodes=3, num_envs=2, **flags)


test_config.__test__ = False  # type: ignore[attr-defined]

CART = {"level_name": "CartPole-v1", "agent_name": "MLPLSTMAgent"}
PONG = {"level_name": "ALE/Pong-v5", "agent_name": "ShallowConvLSTMAgent"}


# --- scores -----------------------------------------------------------------------------------


def test_the_table_is_of_the_57_games_that_ale_has():
    assert len(atari_scores.GAMES) == 57
    assert set(atari_scores.GAMES) <= set(roms.get_all_rom_ids())
    for game, reference in atari_scores.GAMES.items():
        assert reference.human > reference.random, game
        camel = "".join(part.title() for part in game.split("_"))
        level = f"ALE/{camel}-v5"
        assert Scores(level, [Game(reference.human, 4)]).atari_game == game
        assert Scores(level, [Game(reference.human, 4)]).summary["human_normalised"] == 1.0
        assert Scores(level, [Game(reference.random, 4)]).summary["human_normalised"] == 0.0


@pytest.mark.parametrize(
    ("game", "random", "human"),
    # As printed in the tables of Kaiser et al. 2020 and Schwarzer et al. 2021 (Atari 100k).
    [
        ("alien", 227.8, 7127.7),
        ("bank_heist", 14.2, 753.1),
        ("breakout", 1.7, 30.5),
        ("ms_pacman", 307.3, 6951.6),
        ("pong", -20.7, 14.6),
        ("qbert", 163.9, 13455.0),
        ("seaquest", 68.4, 42054.7),
        ("up_n_down", 533.4, 11693.2),
    ],
)
def test_the_table_has_the_literatures_numbers(game, random, human):
    assert atari_scores.GAMES[game] == (random, human)
    halfway = (random + human) / 2
    assert atari_scores.human_normalised(game, halfway) == pytest.approx(0.5)


def test_a_game_outside_the_table_has_no_normalised_score():
    assert atari_scores.human_normalised("tic_tac_toe_3d", 1.0) is None
    assert Scores("ALE/TicTacToe3D-v5", [Game(1.0, 4)]).summary["human_normalised"] is None


def test_a_summary_is_of_the_scores():
    scores = Scores("CartPole-v1", [Game(float(n), n, cut=n > 5) for n in (1, 2, 3, 10)])
    assert scores.summary == {
        "games": 4,
        "cut": 1,
        "mean": 4.0,
        "median": 2.5,
        "std": statistics.stdev([1, 2, 3, 10]),
        "min": 1.0,
        "max": 10.0,
        "human_normalised": None,
    }
    assert str(scores).startswith("games 4 (1 cut by the limit of frames)  mean 4.00")
    assert Scores("CartPole-v1", [Game(5.0, 5)]).summary["std"] == 0
    breakout = Scores("BreakoutNoFrameskip-v4", [Game(30.5, 8)])
    assert "human-normalised 1.000" in str(breakout)
    together = games.over_levels([scores, breakout, Scores("ALE/Pong-v5", [Game(-20.7, 8)])])
    assert together["levels"] == 2  # CartPole is on no such scale
    assert together["median_human_normalised"] == together["mean_human_normalised"] == 0.5


# --- games ------------------------------------------------------------------------------------


class Diary(torch.nn.Module):
    """An agent that writes down the states that go in and come out."""

    def __init__(self, agent: agents.Agent) -> None:
        super().__init__()
        self.agent, self.rows = agent, []
        self.initial_state = agent.initial_state

    def forward(self, inputs, state):
        output, after = self.agent(inputs, state)
        self.rows.append((state.clone(), inputs.done[0].clone(), after.clone()))
        return output, after


@pytest.mark.parametrize("watched", [False, True])
def test_the_recurrent_state_is_carried_and_starts_anew_with_each_game(watched):
    config = Config(**CART, test_num_episodes=4, num_envs=2)
    spec = environments.environment_spec("CartPole-v1")
    torch.manual_seed(0)
    diary = Diary(agents.make_agent("MLPLSTMAgent", spec))
    pictures = Pictures()
    played = games.play(config, diary, spectators=[pictures] if watched else ())
    assert len(played) == 4
    assert len(pictures.scores) == (4 if watched else 0)
    ends = 0
    for (_, _, after), (before, done, _) in zip(diary.rows, diary.rows[1:], strict=False):
        torch.testing.assert_close(before, after, rtol=0, atol=0)
        assert before.abs().sum() > 0
        ends += int(done.sum())
    assert ends >= 3
    # A game's first state is none: the same first observation gives the same output.
    state, _, after = diary.rows[0]
    assert not state.any()
    assert after.any()


class Pictures:
    """A spectator that keeps what it is told."""

    def __init__(self) -> None:
        self.frames, self.scores, self.rate = [], [], 0.0

    def start(self, frames_per_sec):
        self.rate = frames_per_sec

    def frame(self, shown, score, value):
        self.frames.append((shown.copy(), score, value))

    def game_over(self, game):
        self.scores.append(game.score)
        assert self.frames[-1][1] == game.score


def test_watched_games_are_those_of_the_vectorised_environment():
    """The agent plays the same game, frame for frame, whether somebody watches or not."""
    config = Config(**PONG, test_num_episodes=1, num_envs=1, seed=5)
    spec = environments.environment_spec(config.level_name)
    torch.manual_seed(1)
    agent = agents.make_agent(config.agent_name, spec).for_acting()
    pictures = Pictures()
    assert games.play(config, agent) == games.play(config, agent, spectators=[pictures])
    assert pictures.rate == 60
    (score,) = pictures.scores
    assert -21 <= score <= 21
    assert pictures.frames[0][0].shape == (210, 160, 3)
    assert len({frame.tobytes() for frame, _, _ in pictures.frames[:200]}) > 100
    values = {value for _, _, value in pictures.frames}
    assert len(values) > len(pictures.frames) / 8  # a new one for each step of four frames


@pytest.mark.parametrize(
    ("level", "repeats"),
    [("ALE/Breakout-v5", 4), ("BreakoutNoFrameskip-v4", 1), ("ALE/Freeway-v5", 3)],
)
def test_the_screen_plays_bit_for_bit_as_ales_vector_environment(level, repeats):
    """Over several games: their no-op starts, sticky actions, ends and cuts are the same."""
    frames = []
    options = LevelOptions(level, num_action_repeats=repeats, episodic_life=False)
    vector = environments.atari.AtariEnvironment(options, 1, 7, max_frames=403)
    screen = environments.AtariScreen(
        options, 7, lambda *frame: frames.append(frame), max_frames=403
    )
    rng = np.random.default_rng(0)
    ours, theirs = screen.reset(), vector.reset()
    ends = cuts = 0
    for _ in range(2200 // repeats):
        for name, one, other in zip(ours._fields, ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
        ends, cuts = ends + int(ours.done[0]), cuts + int(ours.truncated[0])
        actions = rng.integers(0, vector.spec.num_actions, 1)
        ours, theirs = screen.step(actions), vector.step(actions)
    vector.close()
    assert ends >= 4
    assert cuts > 0
    assert len(frames) > 2000


@pytest.mark.parametrize("game", ["Breakout", "Freeway"])  # its end comes within a step, or a cut's
def test_a_game_has_the_frames_that_were_shown(game):
    shown = []
    options = LevelOptions(f"ALE/{game}-v5", num_action_repeats=4, episodic_life=False)
    vector = environments.atari.AtariEnvironment(options, 1, 7, max_frames=402)
    screen = environments.AtariScreen(
        options, 7, lambda *frame: shown.append(frame), max_frames=402
    )
    rng = np.random.default_rng(0)
    screen.reset(), vector.reset()
    counted = []
    while len(counted) < 4:
        actions = rng.integers(0, vector.spec.num_actions, 1)
        ours, theirs = screen.step(actions), vector.step(actions)
        assert ours.episodes == theirs.episodes
        for episode in ours.episodes:
            assert episode.raw_frames == episode.episode_frames == len(shown)
            counted.append(len(shown))
            shown.clear()
    vector.close()
    assert any(frames % 4 for frames in counted)


def test_each_environment_plays_its_share():
    """Were games taken as they end, the short ones of one environment would crowd out the rest."""
    level = "tests.fakes:Counter-v0"
    config = Config(level_name=level, agent_name="MLPAgent", test_num_episodes=5, num_envs=3)
    spec = environments.environment_spec(level)
    played = games.play(config, agents.make_agent("MLPAgent", spec))
    assert played == [Game(10.0, 4)] * 5


def test_lives_are_no_games():
    environment = environments.make_environment("BreakoutNoFrameskip-v4", 2, 0)
    agent = agents.make_agent("ShallowConvNetAgent", environment.spec)
    with pytest.raises(ValueError, match="within a game"):
        games.play_with(Player(agent, environment, 0), 2)
    environment.close()


def test_greedy_takes_the_likeliest_action_and_streams_differ():
    config = Config(**CART, test_num_episodes=3, num_envs=3)
    spec = environments.environment_spec("CartPole-v1")
    agent = agents.make_agent("MLPLSTMAgent", spec)
    agent.policy.bias.data[1] = 50.0  # always to the right: the pole falls at once
    agent.policy.weight.data[:] = 0
    greedy = games.play(config.replace(greedy=True), agent)
    assert all(8 <= game.score <= 11 for game in greedy)
    agent.policy.bias.data[1] = 0.1
    sampled = games.play(config, agent)
    assert games.play(config, agent) == sampled
    assert games.play(config, agent, stream=1) != sampled
    assert games.play(config.replace(seed=2), agent) != sampled
    assert all(game.score <= 11 for game in games.play(config.replace(greedy=True), agent))


# --- test mode --------------------------------------------------------------------------------


def test_an_evaluation_leaves_all_that_its_numbers_need(tmp_path):
    save_run(tmp_path, frames=4000, **PONG, num_action_repeats=8)
    text = test_mode.run(test_config(tmp_path, seed=3))
    card = json.loads((tmp_path / "evaluation.json").read_text())
    assert f"mean {card['mean']:.2f}" in text
    assert f"human-normalised {card['human_normalised']:.3f}" in text
    assert card["mean"] == statistics.fmean(card["scores"])
    assert card["human_normalised"] == pytest.approx((card["mean"] + 20.7) / 35.3)
    assert (card["random_score"], card["human_score"]) == (-20.7, 14.6)
    assert "1511.06581" in card["reference"]
    assert card["checkpoint"] == "checkpoint-4000.pt"
    assert card["trained"] == {
        "agent_steps": 500,
        "environment_frames": 4000,
        "updates": 10,
        "hours": 0.5,
    }
    played = card["played"]
    assert played["environment_frames"] == sum(card["game_frames"])
    assert played["agent_steps"] == sum(math.ceil(frames / 8) for frames in card["game_frames"])
    assert card["protocol"] == {
        "level_name": "ALE/Pong-v5",
        "sticky_actions": 0.25,
        "noops": "0 to 29",
        "life_loss_ends_episode": False,
        "action_set": "minimal",
        "num_actions": 6,
        "frame_skip": 8,
        "max_frames": 108_000,
        "frame_size": "84x84",
        "frame_stack": 4,
        "preprocessing": card["protocol"]["preprocessing"],
        "reward_clipping": "none",
        "actions": "sampled",
    }
    assert "maximum of the last 2 frames" in card["protocol"]["preprocessing"]
    assert card["versions"]["torch"] == torch.__version__
    assert card["hardware"]["cores"] >= 1
    (row,) = scorebook.rows(tmp_path)
    assert tuple(row) == scorebook.COLUMNS
    assert (row["source"], row["frames"], row["hours"]) == ("test", "4000", "0.5")
    assert float(row["mean"]) == pytest.approx(card["mean"], rel=1e-5)


def test_training_is_told_by_other_rules_than_evaluation():
    config = Config(level_name="BreakoutNoFrameskip-v4", greedy=True)
    training, test = (provenance.describe(config, training) for training in (True, False))
    assert training["life_loss_ends_episode"]
    assert not test["life_loss_ends_episode"]
    assert (training["reward_clipping"], test["reward_clipping"]) == ("abs_one", "none")
    assert (training["actions"], test["actions"]) == ("sampled", "greedy")
    assert training["sticky_actions"] == 0
    cart = provenance.describe(Config(level_name="CartPole-v1"), False)
    assert cart["max_frames"] == 500
    assert cart["frame_size"] is None
    assert "sticky_actions" not in cart
    for value in (training, cart, provenance.hardware(), provenance.versions()):
        assert json.loads(json.dumps(value)) == value


def test_a_second_evaluation_adds_a_row_to_what_is_there(tmp_path):
    save_run(tmp_path, **CART)
    (tmp_path / "evaluation.csv").write_text("frames,mean\n1,2\n")  # of an older version
    test_mode.run(test_config(tmp_path))
    first, second = scorebook.rows(tmp_path)
    assert first == {"frames": "1", "mean": "2"}
    assert second["frames"] == "4000"
    assert set(second) == {"frames", "mean"}


def test_a_checkpoint_can_be_named(tmp_path):
    save_run(tmp_path, frames=1000, seed=0, **CART)
    save_run(tmp_path, frames=2000, seed=9, **CART)
    older = tmp_path / "checkpoint-1000.pt"
    test_mode.run(test_config(tmp_path, checkpoint=str(older)))
    test_mode.run(test_config(tmp_path))
    assert [row["frames"] for row in scorebook.rows(tmp_path)] == ["1000", "2000"]
    # Without --logdir the results lie beside it.
    test_mode.run(test_config(tmp_path, checkpoint=str(older)).replace(logdir=""))
    assert len(scorebook.rows(tmp_path)) == 3
    for text, said in (("nothing", "No such file"), ("damaged", "SHA-256")):
        if text == "damaged":
            older.write_bytes(older.read_bytes()[:-1])
        path = older if text == "damaged" else tmp_path / "none.pt"
        with pytest.raises(UserError, match=f"--checkpoint={path} cannot be read: .*{said}"):
            test_mode.run(test_config(tmp_path, checkpoint=str(path)))


def test_results_that_cannot_be_written_are_told_before_games_are_played(tmp_path, monkeypatch):
    save_run(tmp_path, **CART)
    (tmp_path / "evaluation.csv").touch()
    monkeypatch.setattr("os.access", lambda path, mode: pathlib.Path(path).name != "evaluation.csv")
    with pytest.raises(UserError, match=r"--logdir: .*evaluation.csv cannot be written"):
        test_mode.run(test_config(tmp_path))
    assert not (tmp_path / "evaluation.json").exists()


# --- many levels ------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A directory with runs of three games, two of them of one."""
    small = {"agent_name": "ShallowConvNetAgent"}
    save_run(tmp_path / "pong" / "1", 1000, level_name="PongNoFrameskip-v4", **small)
    save_run(tmp_path / "a" / "b" / "boxing", 2000, level_name="ALE/Boxing-v5", **small)
    save_run(tmp_path / "cart", 3000, **CART)
    save_run(tmp_path / "pong" / "2", 4000, level_name="PongNoFrameskip-v4", **small)
    (tmp_path / "pong" / "latest").symlink_to(tmp_path / "pong" / "1")
    return tmp_path


def test_levels_are_found_with_their_newest_runs(root, caplog):
    found, missing = run_finder.find_runs(root, "CartPole-v1, PongNoFrameskip-v4")
    assert found == {"CartPole-v1": root / "cart", "PongNoFrameskip-v4": root / "pong" / "2"}
    assert missing == []
    found, missing = run_finder.find_runs(root, "atari57")
    assert list(found) == ["ALE/Boxing-v5", "PongNoFrameskip-v4"]
    assert len(missing) == 55
    save_run(root / "sticky", 1, level_name="ALE/Pong-v5", agent_name="ShallowConvNetAgent")
    assert "ALE/Pong-v5" in run_finder.find_runs(root, "atari57")[0]  # the newer one of Pong's
    assert "PongNoFrameskip-v4" not in run_finder.find_runs(root, "atari57")[0]
    with pytest.raises(UserError, match=r"no run of Acrobot-v1; there is: .*CartPole-v1"):
        run_finder.find_runs(root, "CartPole-v1,Acrobot-v1")
    with pytest.raises(UserError, match="no run of any of them"):
        run_finder.find_runs(root / "cart", "atari57")
    (root / "cart" / "config.json").unlink()
    assert "CartPole-v1" not in run_finder.runs_below(root)
    assert "does not tell its level" in caplog.text


def test_levels_are_evaluated_one_by_one_and_together(root):
    levels = "PongNoFrameskip-v4,CartPole-v1"
    text = test_mode.run(test_config(root, levels=levels).replace(test_num_episodes=1))
    assert "PongNoFrameskip-v4: games 1" in text
    assert "CartPole-v1: games 1" in text
    assert "human-normalised over 1 game(s): median" in text
    together = json.loads((root / "evaluation.json").read_text())
    pong, cart = together["evaluations"]
    assert (pong["trained"]["environment_frames"], cart["level_name"]) == (4000, "CartPole-v1")
    assert together["median_human_normalised"] == pong["human_normalised"]
    assert (together["levels"], together["missing"]) == (1, [])
    for folder in (root / "pong" / "2", root / "cart"):
        assert len(scorebook.rows(folder)) == 1
        assert json.loads((folder / "evaluation.json").read_text())["games"] == 1
    assert not scorebook.rows(root / "pong" / "1")


BAD = {
    "of test mode": (["--record=x"], "--record is of --mode=test"),
    "one or many": (["--mode=test", "--levels=a", "--checkpoint=b"], "--checkpoint is of one"),
    "level twice": (
        ["--mode=test", "--logdir=.", "--levels=a", "--level_name=CartPole-v1"],
        "leave --level_name out",
    ),
    "margin of nothing": (["--mode=test", "--record_margin"], "needs --record or --render"),
    "negative": (["--eval_interval_frames=-1"], "--eval_interval_frames must not be negative"),
    "evaluator without a place": (["--job_name=evaluator"], "needs --logdir"),
    "evaluator without an interval": (
        ["--job_name=evaluator", "--logdir=."],
        "needs --eval_interval_frames",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(run_python, name):
    flags, said = BAD[name]
    done = run_python("experiment.py", *flags)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- beside training --------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluations_beside_training_end_with_one_of_the_last_weights(run_python, tmp_path):
    logdir = tmp_path / "run"
    flags = [*CARTPOLE, f"--logdir={logdir}", "--num_actors=1", "--eval_interval_frames=40000"]
    flags += ["--test_num_episodes=5", "--weights_precision=bfloat16"]
    done = run_python("experiment.py", *flags, "--total_environment_frames=120000")
    assert done.returncode == 0, done.stderr
    assert not processes_with(str(logdir))
    rows = scorebook.rows(logdir)
    frames = [int(row["frames"]) for row in rows]
    assert len(rows) >= 2
    assert frames == sorted(set(frames))
    assert len({count // 40000 for count in frames}) == len(frames)  # one an interval
    assert frames[-1] >= 120000
    assert {(row["source"], row["games"]) for row in rows} == {("training", "5")}
    assert float(rows[-1]["mean"]) > float(rows[-1]["min"]) > 0
    assert list((logdir / "evaluation").glob("events.out.tfevents.*"))
    with open(logdir / "metrics.csv") as file:
        assert max(int(row["actors"]) for row in csv.DictReader(file)) == 1  # it is no actor

    # Going on, it does not evaluate again what it has.
    done = run_python("experiment.py", *flags, "--total_environment_frames=160000")
    assert done.returncode == 0, done.stderr
    more = scorebook.rows(logdir)
    assert more[: len(rows)] == rows
    assert int(more[len(rows)]["frames"]) >= 160000


@pytest.mark.slow
def test_an_evaluator_that_dies_is_told_and_training_goes_on(start, tmp_path):
    logdir = tmp_path / "run"
    flags = [*CARTPOLE, f"--logdir={logdir}", "--num_actors=1", "--eval_interval_frames=1000000"]
    with open(tmp_path / "output", "w") as output:
        run = start([sys.executable, "experiment.py", *flags], stderr=output)
    wait_until(lambda: has_frames(logdir))
    os.kill(pid_of("--job_name=evaluator", str(logdir)), signal.SIGKILL)
    said = "the evaluator ended with exit code -9"
    wait_until(lambda: said in (tmp_path / "output").read_text())
    size = (logdir / "metrics.csv").stat().st_size
    wait_until(lambda: (logdir / "metrics.csv").stat().st_size > size)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 0


@pytest.mark.slow
def test_an_evaluator_ends_with_its_learner(start, tmp_path, free_port, run_python):
    """One learner by hand, with keys as the frontend makes them, is stopped or killed."""
    learner_keys, others = curve.make_for_run(["host"])
    curve.write(str(tmp_path / "learner.key"), learner_keys)
    curve.write(str(tmp_path / "actor.key"), others["host"])
    logdir, host = tmp_path / "run", f"localhost:{free_port()}"
    shared = [*CARTPOLE, f"--learner_host={host}", "--eval_interval_frames=5000"]
    shared += ["--task=0", "--test_num_episodes=2"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        learner = start(
            [
                *(sys.executable, "experiment.py", "--job_name=learner", f"--logdir={logdir}"),
                *(f"--key_file={tmp_path / 'learner.key'}", *shared),
            ]
        )
        actor = start(
            [
                *(sys.executable, "experiment.py", "--job_name=actor", *shared),
                f"--key_file={tmp_path / 'actor.key'}",
            ]
        )
        before = len(scorebook.rows(logdir))
        wait_until(lambda before=before: len(scorebook.rows(logdir)) > before)
        assert processes_with(f"--logdir={logdir}")
        learner.send_signal(number)
        learner.wait(timeout=30)
        wait_until(lambda: not processes_with(f"--logdir={logdir}"), timeout=20)
        actor.kill()


def pid_of(*words: str) -> int:
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if all(word in line for word in words):
            return int(path.parent.name)
    raise AssertionError(f"no process with {words}")


@pytest.mark.slow
def test_the_trained_agent_that_comes_along_wins(run_python, tmp_path):
    trained = ROOT / "sandbox" / "trained" / "pong.pt"
    assert trained.stat().st_size < 5e6
    card = json.loads(trained.with_name("evaluation.json").read_text())
    assert card["mean"] > 18
    done = run_python(
        *("experiment.py", "--mode=test", f"--checkpoint={trained}", f"--logdir={tmp_path}"),
        "--test_num_episodes=1",
    )
    assert done.returncode == 0, done.stderr
    (score,) = json.loads((tmp_path / "evaluation.json").read_text())["scores"]
    assert score > 5  # random play: -20.7
