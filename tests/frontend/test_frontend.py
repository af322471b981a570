"""The frontend's words: what it prints, what it refuses; and mpirun's wrapper."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from frontend.workers import COLUMNS
from tests.conftest import STANDS_STILL

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "sandbox" / "local_workers_example.csv"
CANARY = "pass-word-canary"


@pytest.fixture
def tmux_dir(monkeypatch):
    """A tmux server of the test's own, for the child processes too."""
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")  # a socket's path must be short
    monkeypatch.setenv("TMUX_TMPDIR", directory)
    monkeypatch.delenv("TMUX", raising=False)
    yield directory
    subprocess.run(["tmux", "kill-server"], capture_output=True, check=False)
    shutil.rmtree(directory)


@pytest.fixture
def frontend(run_python, tmux_dir):
    def call(*flags, **kwargs):
        return run_python(ROOT / "run_experiment_mm_raw.py", *flags, timeout=30, **kwargs)

    return call


@pytest.fixture
def make_csv(tmp_path, free_port):
    """Writes a CSV with so many learners, on free ports, and actors."""

    def make(learners=2, actors=3, ip="localhost"):
        rows = [",".join(COLUMNS)]
        rows += [f"learner,{ip},{free_port()},,22,me,{CANARY}" for _ in range(learners)]
        rows += [f"actor,{ip},{9001 + task},,22,me,{CANARY}" for task in range(actors)]
        path = tmp_path / "workers.csv"
        path.write_text("\n".join(rows) + "\n")
        path.chmod(0o600)
        return str(path)

    return make


# --- what is printed, what is refused ---


def test_dry_run_prints_every_command_and_makes_nothing(frontend, tmp_path, tmux_dir):
    logdir = tmp_path / "run"
    done = frontend(
        f"--workers_csv_path={EXAMPLE}",
        "--dry_run",
        "--level_name=PongNoFrameskip-v4",
        "--batch_size=32",
        "--noepisodic_life",
        "--gradients_clipping=40.0",
        f"--logdir={logdir}",
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) == 4
    argvs = [shlex.split(line) for line in lines]
    flags = ["--level_name=PongNoFrameskip-v4", "--batch_size=32", "--noepisodic_life"]
    flags += ["--gradients_clipping=40.0", f"--logdir={logdir}"]
    assert [argv.count("--job_name=learner") for argv in argvs] == [2, 0, 0, 0]
    for argv in argvs:
        for flag in flags:
            assert argv.count(flag) == argv.count(str(ROOT / "experiment.py"))
    assert not logdir.exists()
    assert os.listdir(tmux_dir) == []


def test_what_a_preset_says_of_a_whole_run_is_shared_out(frontend, tmp_path):
    """2 learners and 3 actors of the example learn as one learner with one actor would."""
    flags = [f"--logdir={tmp_path / 'run'}", "--dry_run", "--preset=atari_fast"]
    done = frontend(f"--workers_csv_path={EXAMPLE}", *flags)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    for line in lines:
        words = shlex.split(line)
        for flag in ("--batch_size=16", "--num_envs=11", "--total_batch_size=0"):
            assert words.count(flag) == words.count(str(ROOT / "experiment.py")), flag


def test_the_default_logdir_is_one_for_all(frontend, tmp_path):
    argv = [f"--workers_csv_path={EXAMPLE}", "--dry_run", "--level_name=ALE/Pong-v5"]
    done = frontend(*argv, "--key_file=my.key", cwd=tmp_path)
    found = set(re.findall(r"--logdir=(\S+)", done.stdout))
    assert len(found) == 1
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/logs/ALE-Pong-v5/\d+-\d+-\w+", found.pop())
    assert f"--key_file={tmp_path}/my.key" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_never_shown(frontend, make_csv):
    path = make_csv()
    done = frontend(f"--workers_csv_path={path}", "--dry_run")
    assert done.returncode == 0
    assert CANARY not in done.stdout + done.stderr


HEADER = ",".join(COLUMNS)
LEARNER, ACTOR = "learner,localhost,8001,,22,,", "actor,localhost,9001,,22,,"
ACTOR2 = "actor,localhost,9002,,,,"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["job,ip", LEARNER], ["'tf_port'"]),
        ([HEADER, LEARNER, "boss,localhost,9001,,,,"], ["line 3", "'boss'"]),
        ([HEADER, ACTOR], ["no learner"]),
        ([HEADER, LEARNER], ["0 actor(s)"]),
        ([HEADER, LEARNER, "actor,localhost,x,,,,"], ["line 3", "'x'"]),
        ([HEADER, LEARNER, "actor,localhost,8001,,,,"], ["line 3", "localhost:8001"]),
        (
            [HEADER, LEARNER, "actor,198.51.100.7,9001,,,,"],
            ["line 3", "198.51.100.7 cannot reach", "localhost:8001 (line 2)"],
        ),
        ([HEADER, "learner,0.0.0.0,8001,,,,", ACTOR], ["line 2", "'0.0.0.0'", "this machine"]),
        ([HEADER, "learner,no.such.host.invalid,1,,,,", ACTOR], ["line 2", "no known host"]),
        (
            [HEADER, f"learner,198.51.100.7,1,,,me,{CANARY}", ACTOR],
            ["line 2", "ssh_password", "by key only", "ssh-copy-id"],
        ),
        (
            [HEADER, *(f"learner,198.51.100.7,{port},,{port},," for port in (1, 2)), ACTOR, ACTOR2],
            ["line 3", "(line 2 too)", "ssh_port"],
        ),
        ([HEADER, LEARNER, f"actor,localhost,9001,,{CANARY},,"], ["line 3", "ssh_port"]),
    ],
)
def test_a_wrong_file_is_told_in_a_sentence(frontend, tmp_path, rows, words):
    path = tmp_path / "workers.csv"
    path.write_text("\n".join(rows) + "\n")
    check_refused(frontend(f"--workers_csv_path={path}", "--dry_run"), [str(path), *words])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--workers_csv_path"]),
        (["--workers_csv_path=none.csv"], ["none.csv", "does not exist"]),
        ([f"--workers_csv_path={ROOT}"], [str(ROOT), "directory"]),
        ([f"--workers_csv_path={EXAMPLE}", "--batch_sizes=3"], ["batch_sizes"]),
        ([f"--workers_csv_path={EXAMPLE}", "--batch_size=x"], ["batch_size", "x"]),
        ([f"--workers_csv_path={EXAMPLE}", "--batch_size=0"], ["--batch_size", "more than 0"]),
        ([f"--workers_csv_path={EXAMPLE}", "--mode=test"], ["mode"]),
        ([f"--workers_csv_path={EXAMPLE}", "start"], ["'start'"]),
        ([f"--workers_csv_path={EXAMPLE}", "--ssh_timeout=0"], ["--ssh_timeout", "more than 0"]),
        ([f"--workers_csv_path={EXAMPLE}", "--mpirun_args='x"], ["--mpirun_args"]),
        (["--action=stop", "--tmux_sess=none"], ["no run in tmux session 'none'"]),
        (["--action=sleep"], ["action", "status|logs"]),
        ([f"--workers_csv_path={EXAMPLE}", "--tmux_sess=a.b"], ["'a.b'", "tmux session"]),
    ],
)
def test_wrong_flags_are_told_in_a_sentence(frontend, flags, words):
    check_refused(frontend(*flags), words)


def check_refused(done, words):
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert CANARY not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_before_anything_starts(frontend, make_csv, tmp_path, tmux_dir):
    path = make_csv()
    port = int(pathlib.Path(path).read_text().splitlines()[2].split(",")[2])
    with socket.create_server(("127.0.0.1", port)):
        done = frontend(f"--workers_csv_path={path}", f"--logdir={tmp_path / 'run'}")
    check_refused(done, [path, "line 3", f"localhost:{port}"])
    assert not (tmp_path / "run").exists()


def test_a_large_plan_is_printed_in_a_moment(frontend, tmp_path):
    rows = [HEADER, *(f"learner,10.0.0.{n},8001,,,me," for n in range(1, 9))]
    rows += [f"actor,10.0.{1 + n // 12}.{n % 250},{9001 + n},,,me,{CANARY}" for n in range(360)]
    path = tmp_path / "workers.csv"
    path.write_text("\n".join(rows) + "\n")
    done = frontend(f"--workers_csv_path={path}", "--dry_run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) == 1 + 360
    assert CANARY not in done.stdout


@pytest.mark.parametrize("field", ["a b", "a;touch X", "$(touch X)", "'", '"', "`touch X`", "ü\\"])
def test_a_field_is_data_in_every_shell(frontend, tmp_path, field):
    quoted = field.replace('"', '""')
    rows = [f"{HEADER},workdir,python", "learner,127.1.2.3,8001,,,,,,"]
    rows += [f'actor,198.51.100.{n},9001,"{quoted}",,,,"{quoted}","{quoted}"' for n in (1, 2)]
    path = tmp_path / "workers.csv"
    path.write_text("\n".join(rows) + "\n")
    done = frontend(f"--workers_csv_path={path}", "--dry_run")
    assert "cannot reach" in done.stderr  # a loopback learner: the plan is told, not made
    path.write_text(path.read_text().replace("127.1.2.3", "198.51.100.9"))
    done = frontend(f"--workers_csv_path={path}", "--dry_run")
    line = next(line for line in done.stdout.splitlines() if "--job_name=actor" in line)
    words = shlex.split(line)
    assert words[words.index("experiment.py") - 1] == field
    assert f"CUDA_VISIBLE_DEVICES={field}" in words


def test_an_unwritable_logdir(frontend, make_csv, tmp_path):
    (tmp_path / "file").write_text("")
    logdir = tmp_path / "file" / "run"
    check_refused(
        frontend(f"--workers_csv_path={make_csv()}", f"--logdir={logdir}"),
        [f"--logdir={logdir}", "cannot be written to"],
    )


def test_tmux_that_is_not_installed(frontend, make_csv, tmp_path):
    done = frontend(f"--workers_csv_path={make_csv()}", env={"PATH": str(tmp_path)})
    check_refused(done, ["tmux is not installed", "apt-get install tmux"])


def test_mpirun_that_is_not_installed(frontend, make_csv, tmp_path):
    (tmp_path / "tmux").symlink_to(shutil.which("tmux") or "")
    done = frontend(f"--workers_csv_path={make_csv()}", env={"PATH": str(tmp_path)})
    check_refused(done, ["mpirun", "not installed"])


def test_help_is_a_manual(frontend):
    done = frontend("--helpfull")
    assert done.returncode == 0
    for word in ("--workers_csv_path", "--tmux_sess", "--dry_run", "--follow", "--batch_size"):
        assert word in done.stdout
    assert "--actor_hosts" not in done.stdout


def test_the_frontend_loads_no_torch_and_starts_fast(run_python):
    heavy = "('torch', 'numpy', 'gymnasium', 'libtmux', 'paramiko', 'rich')"
    code = (
        "import sys, run_experiment_mm_raw; "
        f"sys.exit(run_experiment_mm_raw.main(['x', '--workers_csv_path={EXAMPLE}', '--dry_run']) "
        f"or [name for name in {heavy} if name in sys.modules] or 0)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


# --- mpirun's wrapper ---


def wait_until(condition, secs=30.0):
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true")


def test_mpiruns_wrapper_has_its_exit_code(run_python):
    wrapper = ROOT / "frontend" / "mpirun.py"
    assert run_python(wrapper, sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    assert run_python(wrapper, "bash", "-c", "kill -9 $$").returncode == 137


def test_mpiruns_wrapper_asks_the_ranks_first_and_then_ends_mpirun(start, tmp_path):
    program, asked = tmp_path / "mpirun", tmp_path / "asked"
    program.write_text(
        "#!/bin/bash\n"
        f"trap 'echo asked >> {asked}' USR1; trap 'exit 5' TERM; echo ready >> {asked}\n"
        "while :; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    process = start([sys.executable, ROOT / "frontend" / "mpirun.py", program])
    wait_until(asked.exists)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: asked.read_text() == "ready\nasked\n")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 5


def test_a_learner_alone_is_asked_first_and_then_hears_a_second_ctrl_c(start, tmp_path):
    process = start(
        [sys.executable, ROOT / "frontend" / "mpirun.py", sys.executable, "-c", STANDS_STILL],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_mpirun_does_not_outlive_a_wrapper_that_is_killed(start, tmp_path):
    pid = tmp_path / "pid"
    wrapper = [sys.executable, ROOT / "frontend" / "mpirun.py"]
    process = start([*wrapper, "bash", "-c", 'echo $$ > "$0"; exec sleep 60', pid])
    wait_until(lambda: pid.exists() and pid.read_text().strip())
    process.kill()
    process.wait(timeout=10)
    wait_until(lambda: not pathlib.Path(f"/proc/{int(pid.read_text())}").exists())
