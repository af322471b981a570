"""The live view: on a terminal, in a pipe, with hundreds of actors, and at its end."""

import dataclasses
import fcntl
import io
import os
import pty
import re
import signal
import struct
import termios
import threading

import hypothesis
import hypothesis.strategies as st
import rich.console

from frontend.watch import monitor
from tests.frontend.watch.test_status import actor, made


class Looks:
    """Is over after so many looks."""

    def __init__(self, count, sets):
        self.left, self.sets = count, sets

    def poll(self):
        self.left -= 1
        return self.sets

    def is_over(self):
        return self.left <= 0


def resize(terminal, rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def on_terminal(looks, rows=40, columns=120):
    """What a terminal of that size gets to see."""
    leader, follower = pty.openpty()
    resize(follower, rows, columns)
    seen = bytearray()

    def read():
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:
                return
            if not data:
                return
            seen.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(follower, "w") as out:
        looks.terminal = follower
        monitor.watch(looks.poll, looks.is_over, out, interval_secs=0.01, title="Pong, my run")
    reader.join(5)
    os.close(leader)
    return re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", bytes(seen)).decode()


def test_a_terminal_sees_the_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    text = on_terminal(Looks(2, [made(0), made(1)]))
    for word in ("Pong, my run", "learner-1", "actor-1-2", "12.3K frames/s", "balanced: so it is"):
        assert word in text
    assert "the run has ended" in text


def test_hundreds_of_actors_fit_with_the_troubled_ones_first(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    sets = [made(index, count=45) for index in range(8)]
    status = dict(sets[7].status)
    status["actors"] = [*status["actors"][:44], actor(44, state="gone")]
    sets[7] = dataclasses.replace(sets[7], status=status)
    text = on_terminal(Looks(1, sets), rows=40)
    assert "actor-7-44" in text
    assert re.search(r"\.\.\. 3\d\d more: 3\d\d acting", text)
    assert "1 actor(s) not connected: actor-7-44" in text
    on_terminal(Looks(1, sets), rows=5, columns=20)  # whatever the size


def test_a_terminal_may_shrink_and_have_no_size(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")

    class Shrinking(Looks):
        def poll(self):
            resize(self.terminal, *[(3, 10), (0, 0), (12, 60), (40, 160)][self.left - 1])
            return super().poll()

    text = on_terminal(Shrinking(4, [made(index, count=45) for index in range(8)]))
    assert "the run has ended" in text


def frame(sets, width, height):
    """The lines of one look at a terminal of that size."""
    console = rich.console.Console(file=io.StringIO(), width=width, height=height)
    console.print(monitor._View("Pong").rich(sets, width, height))
    return console.file.getvalue().splitlines()


def test_many_warnings_leave_room_for_tables():
    sets = [
        made(index, 45, bad_messages=1, last_bad="x" * 60, dropped_unrolls=1, actors=[])
        for index in range(8)
    ]
    for width, height in ((80, 24), (80, 50), (200, 90)):
        lines = frame(sets, width, height)
        assert len(lines) < height
        assert any("360 actor(s) not connected" in line for line in lines)
        assert any(line.startswith("... ") and "more warning(s)" in line for line in lines) == (
            height < 90
        )
        assert any(re.search(r" 10\.0\.7.* 4\.2 +17\.5 ", line) for line in lines)
        assert any("more: " in line for line in lines)


def test_names_give_way_to_numbers():
    sets = [made(actors=[actor(task, host="a-long-name." * 5) for task in range(3)])]
    lines = frame(sets, 80, 24)
    (row,) = [line for line in lines if line.startswith("actor-0-1")]
    for word in ("a-lo", "…", "16", "700", "12", "25%", "1 s", "acting"):
        assert word in row
    assert "left 0:11:50" in " ".join(lines)


def test_a_name_is_no_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    actors = [actor(0, host="a[/b]"), actor(1, host="[bold]c"), actor(2)]
    text = on_terminal(Looks(1, [made(actors=actors, bad_messages=1, last_bad="[/i]")]))
    for word in ("a[/b]", "[bold]c", "[/i]"):
        assert word in text


def test_a_return_that_is_no_number_is_not_in_the_curve():
    view = monitor._View("x")
    for games, mean in enumerate((1.0, float("nan"), 2.0)):
        view.see([made(games=games, episode_raw_return=mean)])
    assert list(view._returns) == [1.0, 2.0]


def test_a_pipe_gets_plain_blocks():
    out = io.StringIO()
    silent = dataclasses.replace(made(1), status=None)
    looks = Looks(3, [made(0), silent])
    monitor.watch(looks.poll, looks.is_over, out, interval_secs=0.01, title="Pong")
    text = out.getvalue()
    assert "\x1b" not in text
    assert text.count("learner-0") == 1  # a block every 10 s
    assert "warning: learner 1" in text
    assert text.endswith("the run has ended\n")


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch):
    class Interrupted(Looks):
        def poll(self):
            if self.left == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().poll()

    out = io.StringIO()
    looks = Interrupted(3, [made()])
    monitor.watch(looks.poll, looks.is_over, out, interval_secs=0.01)
    assert "learner-0" in out.getvalue()
    assert "ended" not in out.getvalue()  # the run goes on
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "ended" not in on_terminal(Interrupted(3, [made()]))


def test_the_curve_of_the_return():
    assert monitor.sparkline([1, 2, 3, 4, 5, 6, 7, 8], 10) == "▁▂▃▄▅▆▇█"
    assert monitor.sparkline([0, 0, 9, 0], 2) == "█▁"
    assert monitor.sparkline([3, 3], 5) == "▁▁"
    assert monitor.sparkline([], 5) == ""


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(1, 60))
def test_a_curve_has_a_bar_for_each_value_that_fits(values, width):
    assert len(monitor.sparkline(values, width)) == min(width, len(values))


def test_each_game_is_in_the_curve_once():
    view = monitor._View("x")
    for games, mean in ((1, 5.0), (1, 5.0), (3, 7.0), (3, 7.0), (4, 6.0)):
        view.see([made(games=games, episode_raw_return=mean)])
    assert list(view._returns) == [5.0, 7.0, 6.0]
