"""Worker sets and flags -> command lines: exactly which, and that the shell and flags read back."""

import dataclasses
import os
import shlex
import subprocess
import tempfile

import pytest
from absl import flags

from frontend import commands
from frontend.commands import Mpi, Place
from frontend.workers import Worker, deal
from impala_torch.flags import command_line
from impala_torch.flags.config import Config

HERE = Place(
    "/venv/python",
    "/here/experiment.py",
    "/here/frontend/scripts",
    "/runs/my run/workers",
    "/runs/my run",
)
THERE = Place(
    ".venv/bin/python",
    "experiment.py",
    "frontend/scripts",
    "~/.impala_torch/1/workers",
    "logs/x",
    folder="~/my impala",
    learner_key="~/.impala_torch/1/learner.key",
    actor_key="~/.impala_torch/1/actor.key",
    relay="~/.impala_torch/1/relay",
)
MPI = Mpi("/bin/mpirun", ssh_config="/home/me/ssh_config")
CONFIG = Config(logdir="/runs/my run", batch_size=24, episodic_life=False, seed=7)
SHARED = ["--noepisodic_life", "--batch_size=24", "--logdir=/runs/my run"]


def sets_of(learners, actors, devices="", password="canary", ip="localhost", **more):
    def rows(job, first, count):
        return [
            Worker(job, ip, first + i, devices, 22, "me", password, first + i, **more)
            for i in range(count)
        ]

    return deal(rows("learner", 8001, learners) + rows("actor", 9001, actors), "workers.csv")


def test_one_learner_here_runs_plainly():
    (one,) = sets_of(1, 2)
    assert commands.learners([one], CONFIG, [HERE], MPI) == [
        "/venv/python",
        "/here/experiment.py",
        "--job_name=learner",
        "--task=0",
        "--learner_host=localhost:8001",
        "--actor_hosts=localhost:9001,localhost:9002",
        "--seed=7",
        *SHARED,
    ]


def contexts_of(argv):
    return [shlex.split(one) for one in shlex.join(argv[argv.index("-np") :]).split(" : ")]


def test_several_learners_are_one_mpirun():
    argv = commands.learners(sets_of(2, 3), CONFIG, [HERE, HERE], MPI)
    assert argv[0] == "/bin/mpirun"
    assert "--allow-run-as-root" not in argv
    assert "plm_rsh_agent" not in argv
    one, two = contexts_of(argv)
    begin = ["-np", "1", "-H", "localhost:2", "/venv/python", "/here/experiment.py"]
    assert one[:6] == two[:6] == begin
    assert {"--task=0", "--learner_host=localhost:8001"} < set(one)
    assert "--actor_hosts=localhost:9001,localhost:9003" in one
    assert {"--task=1", "--learner_host=localhost:8002"} < set(two)
    assert "--actor_hosts=localhost:9002" in two


def test_learners_on_other_hosts_run_in_their_folder_over_ssh():
    first, second = sets_of(1, 1)[0], sets_of(1, 1, ip="10.0.0.7")[0]
    second = dataclasses.replace(second, index=1)
    argv = commands.learners([first, second], CONFIG, [HERE, THERE], MPI)
    assert argv[argv.index("plm_rsh_agent") + 1] == "ssh -F /home/me/ssh_config"
    assert argv[argv.index("oob_tcp_keepalive_time") + 1] == "10"
    one, two = contexts_of(argv)
    assert one[:5] == ["-np", "1", "-H", "localhost:1", "/venv/python"]
    assert two[:6] == ["-np", "1", "-H", "10.0.0.7:1", "bash", "-c"]
    assert two[7:10] == ["~/my impala", ".venv/bin/python", "experiment.py"]
    assert "--key_file=~/.impala_torch/1/learner.key" in two
    assert "--logdir=logs/x" in two
    # One alone, elsewhere, is a job of one.
    alone = commands.learners([dataclasses.replace(second, index=0)], CONFIG, [THERE], MPI)
    assert alone[0] == "/bin/mpirun"


@pytest.mark.parametrize("folder", ["~/my ~impala", "my ~impala", "{home}/my ~impala", "~"])
def test_a_rank_runs_in_its_folder(tmp_path, folder):
    (tmp_path / "my ~impala").mkdir()
    place = dataclasses.replace(THERE, folder=folder.format(home=tmp_path))
    argv = commands._in_folder(["sh", "-c", 'pwd; echo "$1"', "x", "a  $b"], place)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env, cwd="/")
    assert done.stdout == f"{tmp_path}{'' if folder == '~' else '/my ~impala'}\na  $b\n"


def test_networks_and_other_arguments_reach_mpirun():
    mpi = dataclasses.replace(MPI, network="10.0.0.0/24", extra=("--prefix", "/opt/ompi"))
    argv = commands.learners(sets_of(2, 2), CONFIG, [HERE, HERE], mpi)
    for name in ("oob_tcp_if_include", "btl_tcp_if_include"):
        assert argv[argv.index(name) + 1] == "10.0.0.0/24"
    assert argv[argv.index("--prefix") + 1] == "/opt/ompi"
    assert argv.index("--prefix") < argv.index("-np")


def test_root_says_that_it_means_it():
    as_root = dataclasses.replace(MPI, as_root=True)
    assert "--allow-run-as-root" in commands.learners(sets_of(2, 2), CONFIG, [HERE, HERE], as_root)
    assert "--allow-run-as-root" not in commands.learners(sets_of(1, 1), CONFIG, [HERE], as_root)


def test_an_actors_task_is_its_place_among_its_learners_actors():
    sets = sets_of(2, 4)
    argv = commands.actor(sets[1], 1, CONFIG, HERE)
    assert argv[:6] == [
        "/venv/python",
        "/here/experiment.py",
        "--job_name=actor",
        "--task=1",
        "--learner_host=localhost:8002",
        "--actor_hosts=localhost:9002,localhost:9004",
    ]
    assert argv[-3:] == SHARED


def test_an_actor_elsewhere_has_its_hosts_paths_and_its_rows_num_envs():
    (one,) = sets_of(1, 1, num_envs=24)
    argv = commands.actor(one, 0, CONFIG, THERE)
    assert argv[:2] == [".venv/bin/python", "experiment.py"]
    assert "--relay=ipc://~/.impala_torch/1/relay/set-0.ipc" in argv
    assert "--key_file=~/.impala_torch/1/actor.key" in argv
    assert "--num_envs=24" in argv
    assert not [
        word for word in commands.learners([one], CONFIG, [HERE], MPI) if "num_envs" in word
    ]
    assert commands.relay([one], CONFIG, THERE)[-2:] == [
        "~/.impala_torch/1/relay",
        "0=localhost:8001",
    ]


def test_devices_reach_their_process_only():
    (one,) = sets_of(1, 1, devices="0,1")
    assert commands.actor(one, 0, CONFIG, HERE)[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    argv = commands.learners([one], CONFIG, [HERE], MPI)
    assert argv[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    argv = commands.learners(sets_of(2, 2, devices="0"), CONFIG, [HERE, HERE], MPI)
    assert argv.count("CUDA_VISIBLE_DEVICES=0") == 2
    (without,) = sets_of(1, 1)
    assert "env" not in commands.actor(without, 0, CONFIG, HERE)


def test_no_command_has_a_password():
    sets = sets_of(2, 3)
    argvs = [commands.learners(sets, CONFIG, [HERE, HERE], MPI)]
    argvs += [
        commands.actor(sets[0], task, CONFIG, place) for task in (0, 1) for place in (HERE, THERE)
    ]
    assert not any("canary" in word for argv in argvs for word in argv)


def test_experiment_reads_back_what_the_frontend_was_given():
    (one,) = sets_of(1, 1)
    argv = commands.actor(one, 0, CONFIG, HERE)
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.parse_flags(argv[1:], values)
    expected = CONFIG.replace(
        job_name="actor", task=0, learner_host="localhost:8001", actor_hosts="localhost:9001"
    )
    assert command_line.from_flags(values) == expected


def test_opensshs_configuration_reads_back():
    text = commands.ssh_config(
        {"10.0.0.7": {"Port": "2222", "User": "me", "IdentityFile": "/my keys/id"}},
        "/my files/known",
        accept_new=False,
    )
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        argv = ["ssh", "-G", "-F", file.name, "10.0.0.7"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    for line in ("port 2222", "user me", "identityfile /my keys/id", "batchmode yes"):
        assert f"{line}\n" in shown
    assert "userknownhostsfile /my files/known\n" in shown
    assert "stricthostkeychecking true\n" in shown


def test_windows_run_the_scripts_of_their_place():
    kept = commands.keep_log(["python", "x  y"], HERE, "learners")
    log = "/runs/my run/workers/learners.log"
    assert kept == ["bash", "/here/frontend/scripts/keep_log.sh", log, "python", "x  y"]
    going = commands.keep_going(["python", "x  y"], THERE, "relay")
    log = "~/.impala_torch/1/workers/relay.log"
    assert going == ["bash", "frontend/scripts/keep_going.sh", log, "python", "x  y"]
