"""Worker sets and flags -> command lines: exactly which, and that the shell and flags read back."""

import shlex
import subprocess
import sys

import pytest
from absl import flags

from frontend import commands
from frontend.commands import Programs
from frontend.workers import Worker, deal
from impala_torch import config as config_lib
from impala_torch.config import Config

PROGRAMS = Programs("/venv/python", "/here/experiment.py", "/bin/mpirun", "/here/mpirun.py")
CONFIG = Config(logdir="/runs/my run", batch_size=32, episodic_life=False, seed=7)
SHARED = ["--noepisodic_life", "--batch_size=32", "--logdir=/runs/my run"]


def sets_of(learners, actors, devices="", password="canary"):
    def rows(job, first, count):
        return [
            Worker(job, "localhost", first + i, devices, 22, "me", password, first + i)
            for i in range(count)
        ]

    return deal(rows("learner", 8001, learners) + rows("actor", 9001, actors), "workers.csv")


def test_one_learner_runs_plainly():
    (one,) = sets_of(1, 2)
    assert commands.learners([one], CONFIG, PROGRAMS) == [
        "/venv/python",
        "/here/experiment.py",
        "--job_name=learner",
        "--task=0",
        "--learner_host=localhost:8001",
        "--actor_hosts=localhost:9001,localhost:9002",
        "--seed=7",
        *SHARED,
    ]


def test_several_learners_are_one_mpirun():
    argv = commands.learners(sets_of(2, 3), CONFIG, PROGRAMS)
    assert argv[:3] == ["/venv/python", "/here/mpirun.py", "/bin/mpirun"]
    assert "--allow-run-as-root" not in argv
    start = argv.index("-np")
    contexts = shlex.join(argv[start:]).split(" : ")
    assert [shlex.split(context)[:6] for context in contexts] == [
        ["-np", "1", "-H", "localhost:2", "/venv/python", "/here/experiment.py"]
    ] * 2
    assert "--task=0 --learner_host=localhost:8001" in contexts[0]
    assert "--actor_hosts=localhost:9001,localhost:9003 " in contexts[0]
    assert "--task=1 --learner_host=localhost:8002" in contexts[1]
    assert "--actor_hosts=localhost:9002 " in contexts[1]


def test_root_says_that_it_means_it():
    as_root = Programs(*["x"] * 4, as_root=True)
    assert "--allow-run-as-root" in commands.learners(sets_of(2, 2), CONFIG, as_root)
    assert "--allow-run-as-root" not in commands.learners(sets_of(1, 1), CONFIG, as_root)


def test_an_actors_task_is_its_place_among_its_learners_actors():
    sets = sets_of(2, 4)
    argv = commands.actor(sets[1], 1, CONFIG, PROGRAMS)
    assert argv[:6] == [
        "/venv/python",
        "/here/experiment.py",
        "--job_name=actor",
        "--task=1",
        "--learner_host=localhost:8002",
        "--actor_hosts=localhost:9002,localhost:9004",
    ]
    assert argv[-3:] == SHARED


def test_devices_reach_their_process_only():
    (one,) = sets_of(1, 1, devices="0,1")
    assert commands.actor(one, 0, CONFIG, PROGRAMS)[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    assert commands.learners([one], CONFIG, PROGRAMS)[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    argv = commands.learners(sets_of(2, 2, devices="0"), CONFIG, PROGRAMS)
    assert argv.count("CUDA_VISIBLE_DEVICES=0") == 2
    (without,) = sets_of(1, 1)
    assert "env" not in commands.actor(without, 0, CONFIG, PROGRAMS)


def test_the_plan_has_a_command_a_window_and_no_password():
    plan = commands.plan(sets_of(2, 3), CONFIG, PROGRAMS)
    assert [command.name for command in plan] == ["learners", "actor-0-0", "actor-0-1", "actor-1-0"]
    for command in plan:
        assert f"/runs/my run/workers/{command.name}.log" in command.argv
        assert "canary" not in shlex.join(command.argv)


def test_experiment_reads_back_what_the_frontend_was_given():
    (one,) = sets_of(1, 1)
    argv = commands.actor(one, 0, CONFIG, PROGRAMS)
    values = flags.FlagValues()
    config_lib.define_flags(values)
    config_lib.parse_flags(argv[1:], values)
    expected = CONFIG.replace(
        job_name="actor", task=0, learner_host="localhost:8001", actor_hosts="localhost:9001"
    )
    assert config_lib.from_flags(values) == expected


@pytest.mark.parametrize("code", [0, 3])
def test_the_log_is_kept_and_the_exit_code_is_the_commands(tmp_path, code):
    log = tmp_path / "my run's" / "workers" / "x.log"
    script = "import sys; print('a  b', sys.argv[2]); print('err', file=sys.stderr); sys.exit({})"
    argv = [sys.executable, "-u", "-c", script.format(code), "--", "$HOME; 'it'"]
    line = shlex.join(commands.keep_log(argv, log))
    for count in (1, 2):  # a second run appends
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stdout == "a  b $HOME; 'it'\nerr\n"
        assert log.read_text() == done.stdout * count
