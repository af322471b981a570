"""A run inside a Slurm allocation: its rows and commands, and a real Slurm that runs them."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys

import pytest

from frontend import slurm
from frontend.slurm import Allocation, cpus_per_node, gpus_of
from impala_torch.flags.errors import UserError
from tests import slurm_rig
from tests.conftest import ROOT
from tests.test_experiment import CARTPOLE, frames_of, has_frames, metrics_of, wait_until


def rows(cpus, hostnames, gpus=None, learners=0, actors_per_node=0, base_port=8001):
    """The workers as job@node:port, with [GPU] where they have one."""
    made = slurm.workers(
        {"SLURM_JOB_CPUS_PER_NODE": cpus},
        hostnames,
        gpus or {},
        learners=learners,
        actors_per_node=actors_per_node,
        base_port=base_port,
    )
    assert [one.line for one in made] == list(range(1, len(made) + 1))
    return [
        f"{one.job}@{one.address}"
        + (f"[{one.cuda_visible_devices}]" if one.cuda_visible_devices else "")
        for one in made
    ]


CASES = {
    "one node": (
        {"cpus": "4", "hostnames": ["a"]},
        "learner@a:8001 actor@a:9001 actor@a:9002 actor@a:9003",
    ),
    "one small node": ({"cpus": "1", "hostnames": ["a"]}, "learner@a:8001 actor@a:9001"),
    "learner and actors apart": (
        {"cpus": "8,2,1", "hostnames": ["a", "b", "c"]},
        "learner@a:8001 actor@b:9001 actor@b:9002 actor@c:9003",
    ),
    "a learner for each GPU": (
        {"cpus": "2(x3)", "hostnames": ["a", "b", "c"], "gpus": {"b": 2, "c": 1}},
        "learner@b:8001[0] learner@b:8002[1] learner@c:8003[0] "
        "actor@a:9001 actor@a:9002 actor@a:9003",
    ),
    "fewer learners than GPUs": (
        {"cpus": "2(x2)", "hostnames": ["a", "b"], "gpus": {"a": 2, "b": 2}, "learners": 1},
        "learner@a:8001[0] actor@b:9001 actor@b:9002",
    ),
    "GPUs everywhere": (
        {"cpus": "3(x2)", "hostnames": ["a", "b"], "gpus": {"a": 1, "b": 1}},
        "learner@a:8001[0] learner@b:8002[0] actor@a:9001 actor@a:9002 actor@b:9003 actor@b:9004",
    ),
    "two learners without GPUs": (
        {"cpus": "4,1", "hostnames": ["a", "b"], "learners": 2, "actors_per_node": 2},
        "learner@a:8001 learner@a:8002 actor@b:9001 actor@b:9002",
    ),
    "other ports": (
        {"cpus": "1", "hostnames": ["a"], "base_port": 9000, "learners": 2, "actors_per_node": 2},
        "learner@a:9000 learner@a:9001 actor@a:9002 actor@a:9003",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_allocations_rows(name):
    arguments, expected = CASES[name]
    if name == "a learner for each GPU":
        arguments = {**arguments, "actors_per_node": 3}
    assert rows(**arguments) == expected.split()


BAD = {
    "more learners than GPUs": (
        {"cpus": "8", "hostnames": ["a"], "gpus": {"a": 2}, "learners": 3},
        "--slurm_learners=3 is more than the 2 GPU",
    ),
    "fewer actors than learners": (
        {"cpus": "8,1", "hostnames": ["a", "b"], "gpus": {"a": 4}},
        "4 learners and 1 actor",
    ),
    "negative": ({"cpus": "8", "hostnames": ["a"], "learners": -1}, "must not be negative"),
    "no such port": ({"cpus": "8", "hostnames": ["a"], "base_port": 65536}, "--slurm_base_port"),
    "other nodes": ({"cpus": "8", "hostnames": ["a", "b"]}, "is of 1 node(s)"),
    "no CPUs": ({"cpus": "", "hostnames": ["a"]}, "is not of the form 4(x2),8"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_an_allocation_is_said(name):
    arguments, said = BAD[name]
    with pytest.raises(UserError) as error:
        rows(**arguments)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "counts"),
    [("8", [8]), ("4(x2),8", [4, 4, 8]), ("1,72(x3),2(x1)", [1, 72, 72, 72, 2])],
)
def test_cpus_per_node(text, counts):
    assert cpus_per_node(text) == counts


@pytest.mark.parametrize("text", ["", "x", "4(x)", "4(2)", "4,,4", "-1"])
def test_what_is_no_list_of_cpus_is_said(text):
    with pytest.raises(UserError, match="SLURM_JOB_CPUS_PER_NODE"):
        cpus_per_node(text)


def test_gpus_of_a_job():
    shown = """JobId=7 JobName=x
   TRES=cpu=24,node=4,billing=24,gres/gpu=7
   JOB_GRES=gpu:a100:4,gpu:v100:3
     Nodes=n[1-2] CPU_IDs=0-3 Mem=1024 GRES=gpu:a100:2(IDX:0,3)
     Nodes=n3 CPU_IDs=0-7 Mem=0 GRES=mps:100(0),gpu:2(IDX:0-1),gpu:v100:1(IDX:2)
     Nodes=n4 CPU_IDs=0-7 Mem=0 GRES=
     Nodes=n5 CPU_IDs=0-7 Mem=0 GRES=(null)
   TresPerNode=gres:gpu:2
"""
    assert gpus_of(shown) == [("n[1-2]", 2), ("n3", 3), ("n4", 0), ("n5", 0)]


def test_outside_an_allocation(monkeypatch):
    with pytest.raises(UserError, match=r"not inside a Slurm allocation.*sbatch"):
        slurm.allocation({})
    env = dict.fromkeys(("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE"), "1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="scontrol is not here"):
        slurm.allocation(env)


def test_a_slurm_that_does_not_answer_is_said(tmp_path, monkeypatch):
    for name in ("scontrol", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'it is down' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    env = dict.fromkeys(("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE"), "1")
    with pytest.raises(UserError, match=r"'scontrol .*' failed: it is down"):
        slurm.allocation(env)
    with pytest.raises(UserError, match="it is down"):
        slurm.offers_pmix()


JOB = Allocation(
    {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_CPUS_PER_NODE": "4,6"},
    ("n1", "n2"),
    {"n1": 1},
)


def test_an_allocation_goes_through_json():
    assert Allocation(**json.loads(json.dumps(dataclasses.asdict(JOB)))).cpus == JOB.cpus


def test_the_command_of_an_actor():
    argv = slurm.srun_actor(JOB, "n2", ["python", "x y"], name="actor-0-1", cwd="/my run")
    options = argv[argv.index("srun") :]
    assert options[-2:] == ["python", "x y"]
    for option in ("--jobid=7", "--overlap", "--nodelist=n2", "--cpus-per-task=6", "--nodes=1"):
        assert option in options
    assert {"--job-name=actor-0-1", "--chdir=/my run", "--gres=none"} < set(options)


def test_the_command_of_learners():
    alone = slurm.srun_learners(JOB, ["n1"], [["python", "x y"]])
    assert alone[-2:] == ["python", "x y"]
    assert {"--mpi=none", "--nodelist=n1", "--ntasks=1", "--cpus-per-task=4"} < set(alone)
    argv = slurm.srun_learners(JOB, ["n2", "n2", "n1"], [["a", "0 0"], ["b", "'"], ["c"]])
    assert {"--mpi=pmix", "--nodelist=n2,n2,n1", "--ntasks=3", "--nodes=2"} < set(argv)
    assert {"--distribution=arbitrary", "--cpus-per-task=3"} < set(argv)
    script = str(ROOT / "frontend" / "scripts" / "by_rank.sh")
    assert argv[-9:] == ["bash", script, "a", "0 0", "::", "b", "'", "::", "c"]
    assert ":" not in argv  # srun would take what follows for another job's


# --- a real one ---


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_rig.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@contextlib.contextmanager
def job_of(cluster, monkeypatch, *options):
    """An allocation of the test's Slurm, as the frontend sees it."""
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    with cluster.allocated(*options) as env:
        yield slurm.allocation(env)


SAY = 'echo "$SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME in $PWD: $1"'


@pytest.mark.slow
def test_an_allocation_and_what_runs_in_it(cluster, monkeypatch, tmp_path):
    one, two = slurm_rig.NODES
    # What a batch script may ask for besides must not get into the way of our steps.
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--mem-per-cpu=0"]
    with job_of(cluster, monkeypatch, *options, "--gres=gpu:0") as job:
        assert sorted(job.hostnames) == sorted([one, two])
        assert job.cpus == {one: 4, two: 4}
        for node in (one, two):
            argv = slurm.srun_actor(job, node, ["bash", "-c", SAY, "x", "a  b"], cwd=str(tmp_path))
            done = cluster.run(argv)
            assert done.stdout == f"0 of 1 on {node} in {tmp_path}: a  b\n", done.stderr
        done = cluster.run(slurm.srun_actor(job, two, ["bash", "-c", "exit 3"]))
        assert done.returncode == 3
        programs = [["bash", "-c", SAY, "x", f"program  {rank}"] for rank in range(3)]
        done = cluster.run(slurm.srun_learners(job, [two, one, one], programs, cwd=str(tmp_path)))
        assert sorted(done.stdout.splitlines()) == [
            f"{rank} of 3 on {node} in {tmp_path}: program  {rank}"
            for rank, node in enumerate([two, one, one])
        ], done.stderr


@pytest.mark.slow
def test_steps_do_not_wait_for_each_other(cluster, start, monkeypatch, tmp_path):
    with job_of(cluster, monkeypatch, "--nodes=1", "--ntasks=1") as job:
        node = job.hostnames[0]
        script = (
            f'touch "{tmp_path}/$0"; while [ $(ls {tmp_path} | wc -l) -lt 6 ]; do sleep 0.1; done'
        )
        steps = [
            start(slurm.srun_actor(job, node, ["bash", "-c", script, str(i)])) for i in range(6)
        ]
        assert [step.wait(timeout=60) for step in steps] == [0] * 6


@pytest.mark.slow
def test_gpus_are_learners(cluster, monkeypatch):
    options = [f"--nodelist={slurm_rig.GPU_NODE}", "--gres=gpu:1"]
    with job_of(cluster, monkeypatch, "--nodes=1", "--exclusive", *options) as job:
        assert job.gpus == {slurm_rig.GPU_NODE: 1}
        made = slurm.workers(
            job.env, job.hostnames, job.gpus, learners=0, actors_per_node=0, base_port=8001
        )
        assert [one.cuda_visible_devices for one in made] == ["0", "", "", ""]


@pytest.mark.slow
def test_a_batch_script_has_an_allocation(cluster, monkeypatch, tmp_path):
    script = tmp_path / "job.sbatch"
    ask = "import os; from frontend import slurm; print(slurm.allocation(os.environ).cpus)"
    script.write_text(f"#!/bin/bash\ncd {ROOT} && {sys.executable} -c '{ask}'\n")
    done = cluster.run(["sbatch", "--wait", "--nodes=2", f"--output={tmp_path}/out", str(script)])
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out").read_text().replace("'", '"'))) == 2


# Stands for the frontend: says what it was called with, and runs until it is told to stop.
STAND_IN = """#!/bin/bash
echo "$SLURM_JOB_NUM_NODES nodes: $*"
case "$*" in *--action=stop*) touch stop;; *) until [ -e stop ]; do sleep 0.1; done; exit 4;; esac
"""


@pytest.mark.slow
def test_the_example_script_stops_its_run(cluster, start, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    script = ROOT / "sandbox" / "example_slurm.sbatch"
    said = tmp_path / "out"
    options = ["--wait", "--cpus-per-task=4", f"--output={said}", f"--chdir={tmp_path}"]
    job = start(["sbatch", *options, str(script), "--seed=7"], env=cluster.env)
    wait_until(lambda: said.exists() and "--follow" in said.read_text())
    number = re.search(r"--tmux_sess=impala-(\d+)", said.read_text())[1]
    assert cluster.run(["scancel", "--batch", "--signal=INT", number]).returncode == 0
    assert job.wait(timeout=60) == 4  # the run's own
    first, second = said.read_text().splitlines()
    assert first.startswith("2 nodes: run_experiment_mm_raw.py")
    assert first.endswith("--seed=7")
    assert {"--workers_from=slurm", f"--logdir=logs/slurm-{number}"} < set(first.split())
    assert second.endswith(f"--tmux_sess=impala-{number} --action=stop")


def experiment(job: str, task: int, host: str, logdir, *flags: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "experiment.py"), f"--job_name={job}", f"--task={task}"),
        *(f"--learner_host={host}", "--actor_hosts=localhost:9001", f"--logdir={logdir}"),
        *(*CARTPOLE, *flags),
    ]


@pytest.mark.slow
def test_a_learner_and_its_actor_train_in_an_allocation(
    cluster, start, free_port, monkeypatch, tmp_path
):
    logdir, port = tmp_path / "run", free_port()
    with job_of(cluster, monkeypatch, "--nodes=2") as job:
        learner, actor = slurm.workers(
            job.env, job.hostnames, job.gpus, learners=1, actors_per_node=1, base_port=port
        )
        assert learner.ip != actor.ip
        enough = "--total_environment_frames=60000"
        argv = experiment("learner", 0, learner.address, logdir, enough)
        learning = start(slurm.srun_learners(job, [learner.ip], [argv], cwd=str(ROOT)))
        argv = experiment("actor", 0, learner.address, logdir, enough)
        acting = start(slurm.srun_actor(job, actor.ip, argv, cwd=str(ROOT)))
        assert learning.wait(timeout=180) == 0
        assert acting.wait(timeout=30) == 0
    assert frames_of(logdir) >= 60000


def most_actors(logdir) -> int:
    return max(int(row["actors"] or 0) for row in metrics_of(logdir))


@pytest.mark.slow
def test_two_learners_are_a_step_that_stops_with_a_checkpoint(
    cluster, start, free_port, monkeypatch, tmp_path
):
    """Ranks of Horovod on two nodes, an actor each, until their srun is told to stop."""
    pytest.importorskip("horovod")
    logdir = tmp_path / "run"
    hosts = [f"localhost:{free_port()}", f"localhost:{free_port()}"]
    with job_of(cluster, monkeypatch, "--nodes=2") as job:
        if not slurm.offers_pmix():
            pytest.skip("this Slurm offers no PMIx: see 'srun --mpi=list'")
        programs = [experiment("learner", rank, host, logdir) for rank, host in enumerate(hosts)]
        learning = start(slurm.srun_learners(job, job.hostnames, programs, cwd=str(ROOT)))
        acting = [
            start(slurm.srun_actor(job, node, experiment("actor", 0, host, logdir), cwd=str(ROOT)))
            for node, host in zip(job.hostnames, hosts, strict=True)
        ]
        # Learners share: they train from the first actor on.
        wait_until(lambda: has_frames(logdir) and most_actors(logdir) == 2, timeout=120)
        learning.send_signal(slurm.STOP_SIGNAL)
        assert learning.wait(timeout=60) == 0
        assert [one.wait(timeout=30) for one in acting] == [0, 0]
    assert frames_of(logdir) > 0
    assert most_actors(logdir) == 2


@pytest.mark.slow
def test_the_frontend_starts_shows_and_stops_a_run_in_an_allocation(
    cluster, run_python, tmux_env, free_port, tmp_path
):
    logdir = tmp_path / "run"

    def frontend(*flags, env=None, code=0):
        env = {**tmux_env, **(env or {})}
        done = run_python("run_experiment_mm_raw.py", *flags, env=env, timeout=200)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    flags = ["--workers_from=slurm", "--slurm_actors_per_node=2", f"--logdir={logdir}"]
    flags += [f"--slurm_base_port={free_port()}", *CARTPOLE]
    with cluster.allocated("--nodes=2") as env:
        inside = {name: value for name, value in env.items() if name.startswith("SLURM_")}
        planned = frontend(*flags, "--dry_run", env=inside)
        assert sum("srun" in line for line in planned.splitlines()) == 3
        said = frontend(*flags, env=inside)
        assert "1 learner(s), 2 of 2 actor(s)" in said
        assert slurm_rig.NODES[1] in said  # where the actors are
        # What follows need not be asked for inside the allocation.
        wait_until(lambda: has_frames(logdir), timeout=60)
        (status,) = json.loads(frontend("--action=status", "--json"))
        assert len(status["status"]["actors"]) == 2
        assert "nothing was gone" in frontend("--action=heal")
        assert "has ended" in frontend("--action=stop")
    assert frames_of(logdir) > 0
    assert "SIGUSR1: stopping" in (logdir / "workers" / "learners.log").read_text()
    assert "not inside a Slurm allocation" in frontend(*flags, code=2)


@pytest.mark.slow
def test_where_there_is_no_pmix_mpirun_starts_its_daemons_by_srun(cluster, monkeypatch):
    pytest.importorskip("mpi4py")
    script = "import os; from mpi4py import MPI; n = MPI.COMM_WORLD.allreduce(1); "
    script += "print(f'{n} ranks, on ' + os.environ['SLURMD_NODENAME'] + os.linesep, end='')"
    with job_of(cluster, monkeypatch, "--nodes=2") as job:
        argv = [
            *slurm.mpirun_environment(job),
            *("mpirun", "--allow-run-as-root", "--mca", "btl_vader_single_copy_mechanism", "none"),
            *("-map-by", "node", "-np", "2", sys.executable, "-u", "-c", script),
        ]
        done = cluster.run(argv)
        for node in job.hostnames:
            assert f"2 ranks, on {node}" in done.stdout, f"{shlex.join(argv)}: {done.stderr}"
