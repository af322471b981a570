"""Environments: real games against gymnasium's own preprocessing, and the rules of episodes."""

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from impala_torch import environments
from impala_torch.environments.atari import AtariEnvironment
from impala_torch.environments.episodes import EpisodeTracker
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.structures import LevelOptions

gymnasium.register_envs(ale_py)


def play(env, steps, seed=0, action=None):
    """Outputs of a reset and of so many steps, of random actions or always the same."""
    rng = np.random.default_rng(seed)
    outputs = [env.reset()]
    for _ in range(steps):
        actions = rng.integers(0, env.spec.num_actions, env.num_envs)
        outputs.append(env.step(actions if action is None else np.full(env.num_envs, action)))
    env.close()
    return outputs


@pytest.mark.parametrize(
    ("level", "actions"),
    [
        ("PongNoFrameskip-v4", 6),
        ("BreakoutNoFrameskip-v4", 4),
        ("ALE/Pong-v5", 6),
        ("ALE/SpaceInvaders-v5", 6),
    ],
)
def test_both_atari_families(level, actions):
    spec = environments.environment_spec(level)
    assert spec == (((84, 84), "uint8", 4), actions)
    assert environments.resolve(level).num_action_repeats == 4
    every_frame = LevelOptions(level, num_action_repeats=1)
    assert environments.resolve(every_frame) == every_frame
    outputs = play(environments.make_environment(level, 3, seed=1), 20)
    assert outputs[0].done.all()
    for output in outputs:
        assert output.observation.shape == (3, 84, 84)
        assert output.observation.dtype == np.uint8
        assert output.reward.dtype == np.float32
        assert output.done.dtype == bool
    assert not any(output.done.any() for output in outputs[1:5])


def test_width_and_height_are_the_users():
    level = LevelOptions("PongNoFrameskip-v4", width=60, height=48)
    env = environments.make_environment(level, 1, 0)
    assert env.spec.observation.shape == (48, 60)
    assert env.reset().observation.shape == (1, 48, 60)
    env.close()


@pytest.mark.parametrize(
    ("game", "repeats", "started_by"),
    # With noop_max=1 a game starts with no no-op, but with FIRE where that is an action.
    [("Pong", 4, 0), ("Seaquest", 4, 0), ("Breakout", 4, 1), ("Pong", 1, 0), ("Breakout", 1, 1)],
)
def test_frames_and_rewards_are_those_of_gymnasiums_preprocessing(game, repeats, started_by):
    level = f"{game}NoFrameskip-v4"
    options = LevelOptions(level, num_action_repeats=repeats, episodic_life=False)
    env = AtariEnvironment(options, 1, 3, noop_max=1)
    outputs = play(env, 150, seed=4)
    plain = gymnasium.make(level)
    reference = AtariPreprocessing(plain, noop_max=0, frame_skip=repeats, screen_size=84)
    reference.reset(seed=3)
    plain.unwrapped.step(started_by)
    rng = np.random.default_rng(4)
    for output in outputs[1:]:
        action = rng.integers(0, env.spec.num_actions, 1)[0]
        observation, reward, terminated, *_ = reference.step(action)
        assert output.reward[0] == reward
        assert output.done[0] == terminated
        if terminated:
            break
        np.testing.assert_array_equal(output.observation[0], observation)


def test_a_levels_options_are_the_flags_by_name_and_default():
    config = Config()
    flags = LevelOptions(*(getattr(config, name) for name in LevelOptions._fields))
    assert flags == LevelOptions(config.level_name)
    assert environments.level_of(config) == flags._replace(num_action_repeats=4)
    other = {"width": 60, "height": 48, "num_action_repeats": 2, "episodic_life": False}
    level = environments.level_of(Config(level_name="CartPole-v1", **other))
    assert level == LevelOptions("CartPole-v1", **other)


def test_seeds_give_streams():
    def frames(seed, level="BreakoutNoFrameskip-v4"):
        outputs = play(environments.make_environment(level, 3, seed), 60)
        return np.stack([output.observation for output in outputs])

    first = frames(5)
    np.testing.assert_array_equal(first, frames(5))
    assert (first != frames(6)).any()
    for one, other in ((0, 1), (1, 2)):  # games of one actor differ
        assert (first[:, one] != first[:, other]).any()


def test_only_the_v5_family_sticks():
    """Two games with the same seed and actions but another's random stream: sticky ones part."""

    def parted(level):
        env = AtariEnvironment(environments.resolve(level), 8, seed=1, noop_max=1)
        rng = np.random.default_rng(0)
        env.reset()
        rows = []
        for _ in range(60):  # the same actions in all eight
            rows.append(env.step(np.full(8, rng.integers(0, 6))).observation)
        env.close()
        frames = np.stack(rows, axis=1)
        return len({frame.tobytes() for frame in frames})

    # Without stickiness, and with no no-ops at the start, all games are the same.
    assert parted("PongNoFrameskip-v4") == 1
    assert parted("ALE/Pong-v5") > 1


def test_a_lost_life_ends_the_learners_episode_and_not_the_game():
    env = environments.make_environment("BreakoutNoFrameskip-v4", 2, seed=2)
    outputs = play(env, 1500)
    episodes = [episode for output in outputs for episode in output.episodes]
    games = [episode for episode in episodes if episode.raw_return is not None]
    assert len(games) >= 4
    # Five lives a game: each game that ended had five episodes.
    assert 5 * len(games) <= len(episodes) < 5 * (len(games) + 2)
    assert sum(e.episode_return for e in episodes) >= sum(g.raw_return for g in games)
    assert all(g.raw_frames > g.episode_frames for g in games)
    assert all(g.raw_frames >= g.episode_frames * 1 for g in games)
    total = sum(output.reward.sum() for output in outputs)
    assert total >= sum(e.episode_return for e in episodes)
    assert not any(output.truncated.any() for output in outputs)


def test_one_games_lives_add_up_to_it():
    env = environments.make_environment("BreakoutNoFrameskip-v4", 1, seed=3)
    lives = []
    for output in play(env, 3000):
        for episode in output.episodes:
            lives.append(episode)
            if episode.raw_return is not None:
                assert len(lives) == 5
                assert episode.raw_return == sum(life.episode_return for life in lives)
                assert episode.raw_frames == sum(life.episode_frames for life in lives)
                lives = []


def test_without_episodic_life_an_episode_is_a_game():
    level = LevelOptions("BreakoutNoFrameskip-v4", episodic_life=False)
    env = environments.make_environment(level, 2, seed=2)
    episodes = [episode for output in play(env, 1000) for episode in output.episodes]
    assert episodes
    assert all(e.raw_return == e.episode_return for e in episodes)
    assert all(e.raw_frames == e.episode_frames for e in episodes)


def test_a_game_that_is_cut_is_truncated_and_its_last_frame_told():
    level = environments.resolve("PongNoFrameskip-v4")
    env = AtariEnvironment(level, 2, seed=1, max_frames=400)
    outputs = play(env, 110, action=0)
    cut = [output for output in outputs if output.truncated.any()]
    assert cut
    for output in cut:
        assert output.done[output.truncated].all()
        assert output.final_observation.shape == (2, 84, 84)
        assert (output.final_observation != output.observation)[output.truncated].any()
        assert all(e.raw_frames <= 400 for e in output.episodes)
    assert all(o.final_observation is None for o in outputs if not o.truncated.any())


def test_action_repeats_count_frames():
    level = LevelOptions("BreakoutNoFrameskip-v4", num_action_repeats=1)
    env = environments.make_environment(level, 4, 1)
    episodes = [e for output in play(env, 700, action=1) for e in output.episodes]
    four = environments.make_environment("BreakoutNoFrameskip-v4", 4, 1)
    by_four = [e for output in play(four, 175, action=1) for e in output.episodes]
    assert episodes
    assert any(e.episode_frames % 4 for e in episodes)
    assert by_four
    # A step goes on when a life is lost; only the game's end may cut it short.
    lives = [e for e in by_four if e.raw_return is None]
    assert lives
    assert not any(e.episode_frames % 4 for e in lives)


def test_a_vector_environments_rows():
    env = environments.make_environment("tests.fakes:Counter-v0", 2, seed=0)
    outputs = play(env, 9)
    for t, output in enumerate(outputs):
        episode, step = divmod(t, 4)
        assert output.observation.dtype == np.float32
        assert output.observation.tolist() == [[episode, step]] * 2
        assert output.done.tolist() == [step == 0] * 2
        assert output.reward.tolist() == [(0 if t == 0 else 4 if step == 0 else step)] * 2
        assert not output.truncated.any()
    assert [e for o in outputs for e in o.episodes] == [(10.0, 4, 10.0, 4)] * 4


def test_a_time_limit_truncates():
    outputs = play(environments.make_environment("tests.fakes:CutCounter-v0", 2, seed=0), 6)
    for t, output in enumerate(outputs):
        cut = t > 0 and t % 3 == 0
        assert output.truncated.tolist() == [cut] * 2
        assert output.done.tolist() == [cut or t == 0] * 2
        if cut:
            assert output.final_observation.tolist() == [[t // 3 - 1, 3]] * 2
            assert output.observation.tolist() == [[t // 3, 0]] * 2


def test_repeats_sum_rewards_and_stop_at_the_end():
    level = LevelOptions("tests.fakes:Counter-v0", num_action_repeats=3)
    env = environments.make_environment(level, 1, 0)
    outputs = play(env, 3)
    assert [o.reward[0] for o in outputs] == [0, 1 + 2 + 3, 4, 1 + 2 + 3]
    assert [bool(o.done[0]) for o in outputs] == [True, False, True, False]
    assert outputs[2].episodes == [(10.0, 4, 10.0, 4)]  # one frame of the second step's three


def test_a_game_starts_with_0_to_29_no_ops():
    """As ALE counts the frames before a game's first observation; FIRE takes the place of one."""
    for level, least in (("FreewayNoFrameskip-v4", 0), ("BreakoutNoFrameskip-v4", 1)):
        env = AtariEnvironment(environments.resolve(level), 16, seed=5)
        # These seeds have both ends among them; each takes ALE a tenth of a second.
        _, info = env._env.reset(seed=np.arange(16, dtype=np.int32))
        env.close()
        before = info["episode_frame_number"]
        assert (before.min(), before.max()) == (least, 29)
        assert environments.rules(level)["noops"] == "0 to 29"


@pytest.mark.parametrize(("name", "channels"), [("PixelCatch", 1), ("ColourCatch", 3)])
def test_images_come_channels_first_in_the_size_asked_for(name, channels):
    level = LevelOptions(f"tests.fakes:{name}-v0", width=40, height=32)
    env = environments.make_environment(level, 2, 0)
    assert env.spec.observation == ((channels, 32, 40), "uint8", 1)
    for output in play(env, 12):
        image = output.observation
        assert image.shape == (2, channels, 32, 40)
        assert image.dtype == np.uint8
        left, right = image[:, :, :, :20].mean(axis=(1, 2, 3)), image[:, :, :, 20:].mean((1, 2, 3))
        assert sorted((left + right).tolist()) == [200, 200]
        assert set(left.tolist()) <= {0, 200}


def test_cartpole():
    env = environments.make_environment("CartPole-v1", 3, seed=0)
    assert env.spec == (((4,), "float32", 1), 2)
    outputs = play(env, 200)
    episodes = [e for output in outputs for e in output.episodes]
    assert len(episodes) > 10
    assert all(e.raw_return == e.raw_frames for e in episodes)
    np.testing.assert_array_equal(
        play(environments.make_environment("CartPole-v1", 3, seed=0), 5)[-1].observation,
        outputs[5].observation,
    )


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("PoongNoFrameskip-v4", r"no Atari game 'Poong'; did you mean Pong"),
        ("pongNoFrameskip-v4", r"no Atari game 'pong'; did you mean Pong"),
        ("ALE/SpaceInvader-v5", r"SpaceInvaders"),
        ("CartPol-v1", r"did you mean CartPole-v1"),
        ("CartPole-v99", r"CartPole-v99"),
        ("Pendulum-v1", r"continuous"),
        ("FrozenLake-v1", r"its observation is Discrete"),
        ("tests.fakes:DictObservation-v0", r"its observation is Dict"),
        ("tests.fakes:FromOne-v0", r"start at 1"),
        ("no_such_package:Level-v0", r"no_such_package"),
        ("Ant-v5", r"not installed|needs"),
    ],
)
def test_what_is_not_there_or_not_supported_is_told(level, said):
    with pytest.raises(UserError, match=said) as caught:
        environments.environment_spec(level)
    assert f"--level_name={level}" in str(caught.value)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans(), st.booleans()), max_size=60))
@settings(max_examples=60, deadline=None)
def test_bookkeeping_against_plain_sums(steps):
    tracker = EpisodeTracker(1, frames_per_step=4)
    episode: list[float] = []
    game: list[float] = []
    for reward, life_lost, over in steps:
        done = life_lost or over
        episode.append(np.float32(reward))
        game.append(np.float32(reward))
        got = tracker.step(np.array([reward], np.float32), np.array([done]), np.array([over]))
        if not done:
            assert got == []
            continue
        (result,) = got
        assert result.episode_return == pytest.approx(sum(episode), abs=1e-4)
        assert result.episode_frames == 4 * len(episode)
        episode = []
        if over:
            assert result.raw_return == pytest.approx(sum(game), abs=1e-4)
            assert result.raw_frames == 4 * len(game)
            game = []
        else:
            assert result.raw_return is None
