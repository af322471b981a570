"""The scripts of windows and ranks, run as they are: what is kept, started again, and ended."""

import ast
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest

from frontend import commands, scripts
from frontend.commands import Place
from frontend.hosts import hosts, sync
from frontend.hosts.hosts import HostSpec
from frontend.hosts.tmux import Session, WindowState
from impala_torch.flags import exit_codes
from tests.conftest import ROOT, fill

FILES = sorted(scripts.HERE.glob("*.sh"))
KEEPERS = ["keep_log.sh", "keep_going.sh"]
# Says which start it is, by the lines of a file that is its first argument.
COUNT = 'echo x >>"$0"; n=$(wc -l <"$0"); echo "start $n"; '


# Ends in so many words when it hears Ctrl-C. (A shell with a trap may spin for ever, where the
# signal reaches it and a child that it has just made.)
ENDING = """
import signal, sys, time
def end(*_):
    print("ending", flush=True)
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(60)
"""


def argv_of(name: str, *words: str) -> list[str]:
    return ["bash", str(scripts.HERE / name), *map(str, words)]


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "my home"
    path.mkdir()
    return path


@pytest.fixture
def env(home):
    """Outside of tmux, with pauses of milliseconds."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "KEEP_GOING_UNIT": "e-3"}


@pytest.fixture
def call(env):
    def run(argv, **kwargs):
        own = {**env, **kwargs.pop("env", {})}
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, env=own, **kwargs
        )

    return run


@pytest.fixture
def begin(start, env):
    """Starts a command in a process group of its own, which hears Ctrl-C."""

    def launch(argv, **kwargs):
        return start(
            argv,
            env={**env, "TMUX_PANE": "", **kwargs.pop("env", {})},
            stdout=subprocess.PIPE,
            text=True,
            **kwargs,
        )

    return launch


def wait_until(condition, secs=30.0):
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


# --- files ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_script_is_shell_and_says_how_it_is_called(path):
    subprocess.run(["bash", "-n", path], check=True)
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    assert header.startswith("#!/usr/bin/env bash\n")
    assert re.search(rf"^#   .*\b{path.name} [A-Z\[]", header, re.MULTILINE)


def test_scripts_are_where_every_host_has_them():
    assert scripts.HERE == ROOT / scripts.FOLDER
    brought = sync.project_files(ROOT)
    assert len(FILES) >= 5
    for path in FILES:
        assert f"{scripts.FOLDER}/{path.name}" in brought
    assert "\nCOPY frontend frontend\n" in (ROOT / "docker" / "Dockerfile.actor").read_text()


# What a shell would read and Python's messages would not say.
_SHELL = re.compile(
    r"\"\$[@\w]|\$\{|\$\(|\$[?@]|\besac\b|;\s*(then|do|done|fi)\b|\|\| ?exit\b"
    r"|(^|[;&|\n{]\s*)(exec|trap|cd|export|test|set -\w|mkdir) "
)
_ALLOWED = {
    # It finds out whether a host has the project, and so cannot be a file of it.
    ("frontend/hosts/hosts.py", "frontend.hosts.host"),
    # A part of the batch script that a template, the user's own perhaps, is filled in to.
    ("impala_torch/runner/slurm.py", "timeout $TIMEOUT $CMD"),
}


def is_shell_program(text: str) -> bool:
    """Whether a string looks like shell of more than one statement; an AND-list is one."""
    parts = [part.strip() for part in re.split(r"[;\n]", text)]
    statements = [part for part in parts if part and not part.startswith("#")]
    return len(statements) > 1 and bool(_SHELL.search(text))


def strings_of(path: pathlib.Path) -> list[str]:
    """The strings of a Python file but for docstrings, with X for what is filled in."""
    tree = ast.parse(path.read_text())
    parts, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(node.value)
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            words = [one.value if isinstance(one, ast.Constant) else "X" for one in node.values]
            found.append("".join(map(str, words)))
    found += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts
    ]
    return found


def test_no_shell_program_hides_in_a_python_string():
    seen = set()
    for path in [*ROOT.glob("frontend/**/*.py"), *ROOT.glob("impala_torch/**/*.py")]:
        name = str(path.relative_to(ROOT))
        for text in filter(is_shell_program, strings_of(path)):
            allowed = {one for one in _ALLOWED if one[0] == name and one[1] in text}
            assert allowed, f"{name}: make it a file of {scripts.FOLDER}: {text!r}"
            seen |= allowed
    assert seen == _ALLOWED


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ('trap : INT; "$@"; code=$?; exit $code', True),
        ('log=${1/#X/$HOME/}; mkdir -p "${log%/*}"; ', True),
        ("while read -r name; do sha256sum $name; done", True),
        ("\nif [ -f x ]; then\n  cat x\nfi\n", True),
        ("cd X 2>/dev/null || exit 71; exec X -m frontend", True),
        ('export A="$B"; case "$C" in 0) exec X;; esac', True),
        ('cd && cd "$0" && exec "$@"', False),
        ("#!/bin/bash\ncd X || exit\n", False),
        ("exec X\n", False),
        ("the host X has no key; 'ssh-copy-id' installs one, or test another", False),
        ("a table;\nof two lines", False),
    ],
)
def test_what_counts_as_a_shell_program(text, is_one):
    assert is_shell_program(text) == is_one


# --- the log ---


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("code", [0, 3])
def test_what_a_command_says_is_shown_and_appended_to_the_log(call, home, name, code):
    log = home / "my run's" / "workers" / "x.log"
    program = "import sys; print('a  b', sys.argv[2]); print('err', file=sys.stderr); sys.exit({})"
    argv = [sys.executable, "-u", "-c", program.format(code), "--", "$HOME; 'it'"]
    for count in (1, 2):
        done = call(argv_of(name, log, *argv))
        assert done.returncode == code
        assert done.stdout == "a  b $HOME; 'it'\nerr\n"
        assert done.stderr == ""
        assert log.read_text() == done.stdout * count


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize(
    ("log", "path"),
    [
        ("~/my logs/x.log", "my logs/x.log"),
        ("~/.impala_torch/1/~/x.log", ".impala_torch/1/~/x.log"),
        ("x.log", "x.log"),
        ("logs/~/x $(touch y).log", "logs/~/x $(touch y).log"),
    ],
)
def test_a_logs_path_may_begin_with_the_home(call, home, name, log, path):
    done = call(argv_of(name, log, "echo", "a"), cwd=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")
    assert (home / path).read_text() == "a\n"
    assert not (home / "y").exists()


def test_a_window_of_another_host_finds_its_script_in_the_projects_folder(call, home):
    folder = home / "it's my $(touch gotcha); project"
    shutil.copytree(scripts.HERE, folder / scripts.FOLDER)
    place = Place("python", "experiment.py", scripts.FOLDER, "~/.impala_torch/1/workers", "logs")
    for make in (commands.keep_log, commands.keep_going):
        done = call(make(["pwd"], place, "actor-0-0"), cwd=folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}\n", "")
    log = home / ".impala_torch" / "1" / "workers" / "actor-0-0.log"
    assert log.read_text() == f"{folder}\n" * 2


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_kept_commands_exit_code_is_its_own(call, home, code):
    assert call(argv_of("keep_log.sh", home / "x", "bash", "-c", f"exit {code}")).returncode == code
    assert call(argv_of("keep_log.sh", home / "x", "bash", "-c", "kill -9 $$")).returncode == 137
    assert call(argv_of("keep_log.sh", home / "x", "no-such-program")).returncode == 127


def test_a_log_that_cannot_be_written_costs_the_command_nothing(call, home):
    (home / "file").touch()
    done = call(argv_of("keep_log.sh", home / "file" / "x.log", "echo", "a"))
    assert (done.returncode, done.stdout) == (0, "a\n")
    assert "file" in done.stderr


@pytest.mark.parametrize("name", KEEPERS)
def test_a_log_on_a_full_disk_goes_on_when_there_is_room(call, home, small_disk, name):
    big = small_disk / "big"
    fill(big)
    program = """
        echo before; sleep 0.5; rm "$0"; sleep 0.5
        for n in 1 2 3 4 5 6 7 8; do echo after $n; sleep 0.1; done; exit 3
    """
    argv = argv_of(name, small_disk / "x.log", "bash", "-c", program, big)
    done = call(argv, env={"KEEP_LOG_PAUSE": "0.2"})
    assert done.returncode == 3
    shown = [f"after {n}" for n in range(1, 9)]
    assert done.stdout.splitlines()[:9] == ["before", *shown]
    assert done.stderr.count("No space left on device") == 1
    logged = (small_disk / "x.log").read_text().splitlines()
    assert logged[-2:] == shown[-2:]


def test_ctrl_c_while_the_log_cannot_be_written_costs_the_command_nothing(begin):
    argv = [sys.executable, "-c", ENDING, "5"]
    process = begin(argv_of("keep_log.sh", "/dev/full", *argv), stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # it is shown by another program by now
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 5
    assert process.stdout.read() == "ending\n"


# --- starting again ---


def keep_going(call, home, program, **kwargs):
    """Runs a shell program, with a counter's file as $0; returns also what the log has."""
    argv = argv_of("keep_going.sh", "~/x.log", "bash", "-c", program, home / "count")
    return call(argv, **kwargs), (home / "x.log").read_text()


def pauses(log: str) -> list[int]:
    return [int(one) for one in re.findall(r"starting again in (\d+) ", log)]


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_a_meant_end_is_the_end(call, home, code):
    done, log = keep_going(call, home, f"{COUNT} exit {code}")
    assert done.returncode == code
    assert log == done.stdout == "start 1\n"


def test_what_dies_is_started_again_with_growing_pauses(call, home):
    program = f"{COUNT} case $n in 9) exit 0;; 3) kill -9 $$;; esac; exit 1"
    begun = time.monotonic()
    done, log = keep_going(call, home, program)
    assert done.returncode == 0
    assert log == done.stdout
    assert done.stderr == ""
    assert pauses(log) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert time.monotonic() - begun > 0.18  # they were waited for
    told = [line for line in log.splitlines() if "keep going" in line]
    assert told[0] == "[keep going] exit code 1; starting again in 1 e-3"
    assert "exit code 137;" in told[2]


def test_pauses_are_seconds_unless_a_test_says_otherwise(begin, home):
    process = begin(argv_of("keep_going.sh", home / "x", "false"), env={"KEEP_GOING_UNIT": ""})
    assert process.stdout.readline() == "[keep going] exit code 1; starting again in 1 s\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_after_a_long_run_the_pause_is_short_again(call, home):
    program = f"{COUNT} case $n in 4) sleep 1.1;; 6) exit 0;; esac; exit 1"
    done, log = keep_going(call, home, program, env={"KEEP_GOING_LONG_SECS": "0"})
    assert done.returncode == 0
    # A run that saw the clock's second turn counts as long as well, so only the fourth is told of.
    assert pauses(log)[3] == 1
    done, log = keep_going(call, home, f"{COUNT} [ $n = 10 ] || exit 1")
    assert pauses(log)[-3:] == [1, 2, 4]


def test_what_fails_at_once_again_and_again_is_given_up(call, home):
    done, log = keep_going(call, home, f"{COUNT} exit 7")
    assert done.returncode == exit_codes.GIVEN_UP
    assert log.count("start ") == 20
    assert log.splitlines()[-1] == (
        "[keep going] exit code 7; given up: it failed 20 times in a row in less than 60 s each; "
        "--action=heal tries again"
    )


def test_what_ran_for_long_in_between_is_not_given_up(call, home):
    program = f"{COUNT} case $n in 2|4) sleep 2.1;; 6) exit 0;; esac; exit 1"
    few = {"KEEP_GOING_LONG_SECS": "1", "KEEP_GOING_TRIES": "3"}
    done, log = keep_going(call, home, program, env=few)
    assert done.returncode == 0, log


def test_ctrl_c_lets_the_command_end_and_is_the_end(begin, home):
    log = home / "x.log"
    process = begin(argv_of("keep_going.sh", log, sys.executable, "-c", ENDING, "1"))
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert process.stdout.read() == "ending\n"
    assert log.read_text() == "ready\nending\n"


def test_ctrl_c_in_a_pause_is_the_end(begin, home):
    argv = argv_of("keep_going.sh", home / "x.log", "false")
    process = begin(argv, env={"KEEP_GOING_UNIT": "m"})
    assert process.stdout.readline().endswith("starting again in 1 m\n")

    def sleeps():
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        with contextlib.suppress(OSError):  # one that has ended since
            return "sleep\n" in [
                pathlib.Path(f"/proc/{n}/comm").read_text() for n in children.split()
            ]
        return False

    wait_until(sleeps)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130


@pytest.mark.parametrize("code", [5, 0])
def test_after_ctrl_c_a_kept_commands_exit_code_is_its_own(begin, home, code):
    argv = [sys.executable, "-c", ENDING, str(code)]
    process = begin(argv_of("keep_log.sh", home / "x.log", *argv))
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == code
    assert (home / "x.log").read_text() == "ready\nending\n"


@pytest.mark.parametrize("name", KEEPERS)
def test_a_command_that_ctrl_c_kills_is_told_as_such(begin, home, name):
    process = begin(argv_of(name, home / "x.log", "bash", "-c", "echo ready; exec sleep 60"))
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130


@pytest.mark.parametrize("name", KEEPERS)
def test_a_newer_file_does_not_reach_what_runs(begin, home, name):
    folder = home / "scripts"
    shutil.copytree(scripts.HERE, folder)
    program = 'echo ready; until [ -e "$0" ]; do sleep 0.05; done; exit 3'
    gate = home / "gate"
    process = begin(["bash", folder / name, home / "x.log", "bash", "-c", program, gate])
    assert process.stdout.readline() == "ready\n"
    for path in folder.glob("*.sh"):
        path.write_text("exit 99\n" * 1000)
    gate.touch()
    assert process.wait(timeout=20) == 3


# --- in tmux ---


@pytest.fixture
def session():
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield Session("run", name)
    subprocess.run(["tmux", "-L", name, "kill-server"], capture_output=True, check=False)


def test_a_pane_tells_how_often_and_after_what_its_command_was_started_again(session, home):
    place = Place("", "", str(scripts.HERE), str(home / "my logs"), "")
    program = f"{COUNT} [ $n = 2 ] || exit 7; until [ -e go ]; do sleep 0.05; done; exit 2"
    argv = commands.keep_going(["bash", "-c", program, str(home / "count")], place, "actor")
    # A second window keeps the session.
    session.start([("actor", argv), ("other", ["sleep", "60"])], cwd=home)
    wait_until(lambda: session.windows()[0] == WindowState("actor", None, 1, 7))
    wait_until(lambda: "start 2" in (home / "my logs" / "actor.log").read_text())
    (home / "go").touch()
    wait_until(lambda: session.windows()[0] == WindowState("actor", 2, 1, 7))


def test_ctrl_c_in_a_window_ends_its_command_and_tells_the_code(session, home):
    place = Place("", "", str(scripts.HERE), str(home), "")
    argv = commands.keep_going(["bash", "-c", "echo ready; exec sleep 60"], place, "actor")
    session.start([("actor", argv), ("other", ["sleep", "60"])], cwd=home)
    log = home / "actor.log"
    wait_until(lambda: log.exists() and log.read_text() == "ready\n")

    def ended():
        session.press("actor", "C-c")
        return session.windows()[0].exit_code is not None

    wait_until(ended)
    assert session.windows()[0] == WindowState("actor", 130)


# --- ranks and hosts ---


def test_each_rank_runs_its_program(call):
    say = 'echo "$OMPI_COMM_WORLD_SIZE: $0 $*"; exit 4'
    programs = [["bash", "-c", say, f"rank {n}", "a  b", "'\"$x :"] for n in range(3)]
    words = [word for program in programs for word in ("::", *program)][1:]
    for rank in range(3):
        slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "3"}
        done = call(argv_of("by_rank.sh", *words), env=slurm)
        assert done.returncode == 4
        assert done.stdout == f"3: rank {rank} a  b '\"$x :\n"
    for rank in ("3", "7"):
        done = call(argv_of("by_rank.sh", *words), env={"SLURM_PROCID": rank, "SLURM_NTASKS": "8"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"by_rank.sh: there is no program for rank {rank}\n"


@pytest.mark.parametrize("workdir", ["~/my project", "{home}/my project", "my project"])
def test_another_host_says_what_it_lacks(call, home, workdir):
    folder = home / "my project"
    spec = HostSpec("there", None, workdir.format(home=home), "bin/python")

    def code():
        # As sshd does it: in the home.
        done = call(["sh", "-c", hosts._agent_command(spec)], cwd=home)
        return done.returncode, done.stdout

    assert code() == (hosts._NO_FOLDER, "")
    (folder / "frontend").mkdir(parents=True)
    assert code() == (hosts._NO_PROJECT, "")
    (folder / scripts.FOLDER).mkdir()
    assert code() == (hosts._NO_PYTHON, "")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text('#!/bin/sh\necho "$PWD $*"\n')
    (folder / "bin" / "python").chmod(0o755)
    assert code() == (0, f"{folder} -m frontend.hosts.host\n")
