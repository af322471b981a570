"""The frontend as users run it; started runs are real mpirun in real tmux, of small stand-ins."""

import dataclasses
import io
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
import textwrap
import threading
import time

import pytest

from frontend import commands, follow, run, tmux
from frontend.commands import Programs
from frontend.workers import COLUMNS
from impala_torch.config import Config, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def test_the_default_logdir_is_one_for_all(frontend, tmp_path):
    argv = [f"--workers_csv_path={EXAMPLE}", "--dry_run", "--level_name=ALE/Pong-v5"]
    done = frontend(*argv, "--key_file=my.key", cwd=tmp_path)
    found = set(re.findall(r"--logdir=(\S+)", done.stdout))
    assert len(found) == 1
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/logs/ALE-Pong-v5/\d+-\d+", found.pop())
    assert f"--key_file={tmp_path}/my.key" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_never_shown(frontend, make_csv):
    path = make_csv()
    done = frontend(f"--workers_csv_path={path}", "--dry_run")
    assert done.returncode == 0
    assert CANARY not in done.stdout + done.stderr


HEADER = ",".join(COLUMNS)
LEARNER, ACTOR = "learner,localhost,8001,,22,,", "actor,localhost,9001,,22,,"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["job,ip", LEARNER], ["'tf_port'"]),
        ([HEADER, LEARNER, "boss,localhost,9001,,,,"], ["line 3", "'boss'"]),
        ([HEADER, ACTOR], ["no learner"]),
        ([HEADER, LEARNER], ["0 actor(s)"]),
        ([HEADER, LEARNER, "actor,localhost,x,,,,"], ["line 3", "'x'"]),
        ([HEADER, LEARNER, "actor,localhost,8001,,,,"], ["line 3", "localhost:8001"]),
        ([HEADER, LEARNER, "actor,192.0.2.7,9001,,,,"], ["line 3", "'192.0.2.7'", "this machine"]),
        ([HEADER, LEARNER, "actor,0.0.0.0,9001,,,,"], ["line 3", "'0.0.0.0'", "this machine"]),
        ([HEADER, LEARNER, "actor,no.such.host.invalid,1,,,,"], ["line 3", "no known host"]),
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
    heavy = "('torch', 'numpy', 'zmq', 'gymnasium', 'libtmux')"
    code = (
        "import sys, run_experiment_mm_raw; "
        f"sys.exit(run_experiment_mm_raw.main(['x', '--workers_csv_path={EXAMPLE}', '--dry_run']) "
        f"or [name for name in {heavy} if name in sys.modules] or 0)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


# --- runs of small stand-ins for experiment.py ---

STAND_IN = """
    import os, pathlib, signal, sys, time
    flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
    end = pathlib.Path(flags["logdir"], "end")
    name = flags["job_name"] + " " + flags["task"]
    if flags["job_name"] == "learner":
        def stop(*_):
            time.sleep(0.5)
            print(name, "saved", flush=True)
            end.touch()
            sys.exit(0)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
    print(name, "runs at", flags["learner_host"], os.getcwd(), flush=True)
    for _ in range(600):
        if os.path.exists(flags["level_name"]):  # a way to fail
            sys.exit(name + " fails")
        if end.exists():
            sys.exit(0)
        time.sleep(0.1)
"""


@pytest.fixture
def prepared(make_csv, tmp_path, tmux_dir):
    """A function: a run of stand-ins, ready to start, and its session."""
    program = tmp_path / "stand in.py"
    program.write_text(textwrap.dedent(STAND_IN))

    def prepare(**counts):
        config = Config(logdir=str(tmp_path / "my run"), level_name=str(tmp_path / "fail"))
        plan = run.plan(make_csv(**counts), config)
        programs = Programs(
            python=sys.executable,
            experiment=str(program),
            mpirun=shutil.which("mpirun") or "",
            mpirun_wrapper=str(ROOT / "frontend" / "mpirun.py"),
            as_root=os.geteuid() == 0,
        )
        planned = commands.plan(plan.sets, plan.config, programs)
        # The stand-in's level is no level.
        plan = dataclasses.replace(plan, commands=planned, preflight=["true"])
        return plan, tmux.Session("impala")

    return prepare


def wait_until(condition, secs=30.0):
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true")


def learners_log(plan):
    path = plan.logs / "learners.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(("learners", "actors"), [(1, 2), (2, 3)])
def test_a_run_starts_and_ctrl_c_ends_it_whole(prepared, learners, actors):
    plan, session = prepared(learners=learners, actors=actors)
    run.start(plan, session)
    assert [window.name for window in session.windows()] == [one.name for one in plan.commands]
    with pytest.raises(UserError, match="'impala' exists already"):
        run.start(plan, session)
    wait_until(lambda: learners_log(plan).count("runs at") == learners)
    assert learners_log(plan).count(str(ROOT)) == learners
    told = run.summary(plan, session.name)
    stop = re.search(r"stop: +(tmux send-keys -t impala:learners C-c)", told)
    assert stop is not None
    started = time.monotonic()
    subprocess.run(shlex.split(stop[1]), check=True)
    wait_until(lambda: not session.exists())
    assert time.monotonic() - started < 15
    assert learners_log(plan).count("saved") == learners
    for one in plan.commands[1:]:
        assert "runs at" in (plan.logs / f"{one.name}.log").read_text()
    for path in plan.logs.iterdir():
        assert CANARY not in path.read_text()
    assert CANARY not in told


def test_following_shows_progress_and_ctrl_c_stops_the_run(prepared):
    plan, session = prepared(learners=2, actors=2)
    plan.logs.mkdir(parents=True)
    (plan.logs / "learners.log").write_text("of an earlier run\n")
    begin = follow.end_of_log(plan.logs)
    run.start(plan, session)

    def press_ctrl_c():
        wait_until(lambda: learners_log(plan).count("runs at") == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    out = io.StringIO()
    assert follow.follow(session, plan.logs, begin, out) == 0
    assert out.getvalue().count("runs at") == 2
    assert out.getvalue().count("saved") == 2
    assert "earlier" not in out.getvalue()
    assert not session.exists()


def test_following_tells_of_failures_and_leaves_nothing(prepared, tmp_path):
    plan, session = prepared(learners=1, actors=2)
    run.start(plan, session)
    wait_until(lambda: "runs at" in learners_log(plan))
    (tmp_path / "fail").touch()
    out = io.StringIO()
    assert follow.follow(session, plan.logs, 0, out) == 1
    assert "learner 0 fails" in out.getvalue()
    assert f"learners failed with exit code 1; its log: {plan.logs}/learners.log" in out.getvalue()
    assert not session.exists()


def test_ending_the_session_leaves_no_process(prepared):
    plan, session = prepared(learners=2, actors=2)
    run.start(plan, session)
    wait_until(lambda: learners_log(plan).count("runs at") == 2)
    assert len(processes_of(plan)) >= 5
    session.kill()
    wait_until(lambda: not processes_of(plan))


def processes_of(plan):
    """Command lines of the processes that have to do with a run."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if plan.config.logdir in line:
            found.append(line)
    return found


def test_mpiruns_wrapper_has_its_exit_code(run_python):
    wrapper = ROOT / "frontend" / "mpirun.py"
    assert run_python(wrapper, sys.executable, "-c", "raise SystemExit(7)").returncode == 7
    assert run_python(wrapper, "bash", "-c", "kill -9 $$").returncode == 137


def test_mpiruns_wrapper_hands_a_second_signal_to_mpirun(start, tmp_path):
    ready = tmp_path / "ready"
    rank = 'trap \'\' TERM; touch "$0"; while [ -e "$0" ]; do sleep 0.1; done'
    parent = 'trap "exit 5" TERM; bash -c "$1" "$0" & wait'
    wrapper = [sys.executable, ROOT / "frontend" / "mpirun.py"]
    process = start([*wrapper, "bash", "-c", parent, ready, rank])
    wait_until(ready.exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 5
    ready.unlink()  # which ends the rank


def test_mpirun_does_not_outlive_a_wrapper_that_is_killed(start, tmp_path):
    pid = tmp_path / "pid"
    wrapper = [sys.executable, ROOT / "frontend" / "mpirun.py"]
    process = start([*wrapper, "bash", "-c", 'echo $$ > "$0"; exec sleep 60', pid])
    wait_until(lambda: pid.exists() and pid.read_text().strip())
    process.kill()
    process.wait(timeout=10)
    wait_until(lambda: not pathlib.Path(f"/proc/{int(pid.read_text())}").exists())
