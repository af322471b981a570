"""Videos of games, decoded again; the window; what is told where there is neither."""

import json
import pathlib

import av
import numpy as np
import pytest

from impala_torch.acting.player import make_acting_agent
from impala_torch.evaluation import games, picture, test_mode
from impala_torch.evaluation.games import Enough, Game
from impala_torch.evaluation.recording import Recorder
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from tests.evaluation.test_evaluate import CART, save_run, test_config


class Video:
    """What a video decodes to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.frames = self.changes = 0  # how many, and how many differ from the one before
        self.shapes = set()
        before = None
        with av.open(str(path)) as container:
            (stream,) = container.streams.video
            self.codec, self.pixels = stream.codec_context.name, stream.codec_context.pix_fmt
            self.rate = stream.average_rate
            for frame in container.decode(stream):
                self.last = frame.to_ndarray(format="rgb24")  # [H, W, 3] uint8
                self.changes += before is not None and (self.last != before).any()
                self.frames += 1
                self.shapes.add(self.last.shape)
                before = self.last


def atoms(path: pathlib.Path) -> list[str]:
    """Names of an MP4's outermost boxes, in order."""
    data, names = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        names.append(data[4:8].decode())
        data = data[size:]
    return names


@pytest.mark.slow
def test_a_recorded_game_is_a_video_that_browsers_play(tmp_path):
    """Pong's own picture, every frame of it: H.264 in 4:2:0, with its index at the front."""
    save_run(tmp_path / "run", level_name="ALE/Pong-v5", agent_name="ShallowConvNetAgent")
    config = test_config(tmp_path / "run", record=str(tmp_path / "videos"))
    text = test_mode.run(config.replace(test_num_episodes=1))
    (path,) = (tmp_path / "videos").iterdir()
    assert path.name == "ALE-Pong-v5-4000-game-1.mp4"
    video = Video(path)
    assert (video.codec, video.pixels, video.rate) == ("h264", "yuv420p", 60)
    assert atoms(path).index("moov") < atoms(path).index("mdat")
    card = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert card["game_frames"] == [video.frames]
    assert video.shapes == {(630, 480, 3)}
    assert video.changes > video.frames / 2
    field = video.last[320, 240].astype(int)
    assert field[0] > field[1] > field[2]  # Pong's is brown
    assert "games 1" in text


def test_a_file_a_game_of_a_gymnasium_level(tmp_path):
    save_run(tmp_path, **CART)
    test_mode.run(test_config(tmp_path, record=str(tmp_path / "videos"), record_margin=True))
    card = json.loads((tmp_path / "evaluation.json").read_text())
    names = [f"CartPole-v1-4000-game-{n}.mp4" for n in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    for name, frames in zip(names, card["game_frames"], strict=True):
        video = Video(tmp_path / "videos" / name)
        assert (video.rate, video.frames, video.shapes) == (50, frames, {(440, 600, 3)})


def test_a_step_that_ends_early_counts_the_frames_that_it_has(tmp_path):
    save_run(tmp_path, **CART, num_action_repeats=4)
    test_mode.run(test_config(tmp_path, record=str(tmp_path / "videos")))
    frames = json.loads((tmp_path / "evaluation.json").read_text())["game_frames"]
    names = [tmp_path / "videos" / f"CartPole-v1-4000-game-{n}.mp4" for n in (1, 2, 3)]
    assert frames == [Video(name).frames for name in names]
    assert any(count % 4 for count in frames)


def test_the_margin_shows_score_and_value():
    shown = np.full((210, 160, 3), 90, np.uint8)
    plain = picture.compose(shown, 1, 2.5, margin=False)
    assert plain.shape == (630, 480, 3)
    assert (plain == 90).all()
    framed = picture.compose(shown, 1, 2.5, margin=True)
    assert framed.shape == (670, 480, 3)
    assert (framed[:630] == 90).all()
    assert framed[630:].max() == 255
    left, right = np.s_[630:, :240], np.s_[630:, 240:]
    other_score = picture.compose(shown, 7, 2.5, margin=True)
    assert (other_score[left] != framed[left]).any()
    assert (other_score[right] == framed[right]).all()
    other_value = picture.compose(shown, 1, -2.5, margin=True)
    assert (other_value[right] != framed[right]).any()
    assert (other_value[left] == framed[left]).all()


@pytest.mark.parametrize(
    ("shape", "expected", "times"),
    [
        ((210, 160), (630, 480), 3),
        ((250, 160), (750, 480), 3),
        ((51, 33), (714, 462), 14),
        ((401, 601), (402, 602), 1),
    ],
)
def test_pictures_are_enlarged_to_even_sizes(shape, expected, times):
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 255, (*shape, 3), np.uint8)
    large = picture.enlarge(shown)
    assert large.shape[:2] == expected
    pixels = large[: times * shape[0] : times, : times * shape[1] : times]
    np.testing.assert_array_equal(pixels, shown)


def test_a_game_that_does_not_end_leaves_no_file(tmp_path):
    black = np.zeros((210, 160, 3), np.uint8)
    with Recorder(Config(record=str(tmp_path)), 1) as recorder:
        recorder.start(60.0)
        recorder.frame(black, 0, 0)
        recorder.game_over(Game(1.0, 4))
        for _ in range(100):  # some stay with the encoder
            recorder.frame(black, 0, 0)
        assert len(list(tmp_path.iterdir())) == 2
    (path,) = tmp_path.iterdir()
    assert path.name == "BreakoutNoFrameskip-v4-1-game-1.mp4"
    assert Video(path).frames == 1


def test_who_watched_enough_ends_the_games_with_those_that_ended():
    class Two:
        """Sees two games."""

        left = 2

        def start(self, frames_per_sec):
            assert frames_per_sec == 50

        def frame(self, shown, score, value):
            if self.left == 0:
                raise Enough

        def game_over(self, game):
            self.left -= 1

    config = Config(**CART, test_num_episodes=5)
    assert len(games.play(config, make_acting_agent(config), spectators=[Two()])) == 2


def test_a_level_without_pictures_is_told(tmp_path):
    save_run(tmp_path, level_name="tests.fakes:Counter-v0", agent_name="MLPAgent")
    with pytest.raises(UserError, match=r"has no pictures .* \(none\) lack rgb_array"):
        test_mode.run(test_config(tmp_path, record=str(tmp_path / "videos")))


def test_a_folder_that_cannot_be_is_told(tmp_path):
    save_run(tmp_path, **CART)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--record=.*file/videos cannot be written to: Not a dir"):
        test_mode.run(test_config(tmp_path, record=str(tmp_path / "file" / "videos")))


@pytest.mark.parametrize("driver", ["", "no_such_driver"])
def test_no_display_is_told(run_python, tmp_path, driver):
    save_run(tmp_path, **CART)
    env = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "SDL_VIDEODRIVER": driver}
    done = run_python(
        *("experiment.py", "--mode=test", f"--logdir={tmp_path}", "--render"), env=env
    )
    assert done.returncode == 2, done.stderr
    assert "error: --render" in done.stderr
    assert "--record=DIR makes videos without one" in done.stderr
    assert "Traceback" not in done.stderr


SHOW = """
import pygame
from impala_torch.evaluation import window
shown = []
flip = pygame.display.flip
def look():
    shown.append(pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1).copy())
    if len(shown) == CLOSE:
        pygame.event.post(pygame.event.Event(pygame.QUIT))
    flip()
pygame.display.flip = look
from impala_torch.evaluation import test_mode
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
try:
    print(test_mode.run(Config(mode="test", logdir=LOGDIR, render=True, test_num_episodes=2)))
except UserError as error:
    print(error)
print("shown", len(shown), shown[0].shape, (shown[0] != shown[1]).any())
print("title", pygame.display.get_init())
"""


@pytest.mark.parametrize(
    ("close", "said"), [(0, "games 2"), (3, "the window was closed before a game had ended")]
)
def test_the_window_shows_every_frame_until_it_is_closed(run_python, tmp_path, close, said):
    """SDL's dummy driver draws into memory: all of a window but the glass."""
    save_run(tmp_path, **CART)
    code = SHOW.replace("LOGDIR", repr(str(tmp_path))).replace("CLOSE", str(close))
    done = run_python("-c", code, env={"SDL_VIDEODRIVER": "dummy"})
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "(400, 600, 3) True" in done.stdout
    assert "title False" in done.stdout  # it is closed at the end
    if close:
        assert "shown 3 " in done.stdout
    else:
        card = json.loads((tmp_path / "evaluation.json").read_text())
        assert f"shown {sum(card['game_frames'])} " in done.stdout
