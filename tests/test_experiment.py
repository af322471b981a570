"""experiment.py as its users run it: locally, by hand with mpirun, stopped, resumed, tested."""

import csv
import json
import os
import pathlib
import re
import signal
import sys
import time

import pytest
import torch

from impala_torch.flags import exit_codes
from impala_torch.learning import checkpoint
from tests.conftest import ROOT, fill

CARTPOLE = [
    "--level_name=CartPole-v1",
    "--agent_name=MLPAgent",
    "--batch_size=16",
    "--unroll_length=20",
    "--num_envs=8",
    "--reward_clipping=none",
    "--entropy_cost=0.01",
    "--learning_rate=0.002",
    "--epsilon=0.01",
    "--gradients_clipping=40",
    "--progress_secs=1",
]


def metrics_of(logdir: pathlib.Path) -> list[dict[str, str]]:
    with open(logdir / "metrics.csv") as file:
        return list(csv.DictReader(file))


def frames_of(logdir: pathlib.Path) -> int:
    return checkpoint.restore(logdir)["frames"]


def processes_with(text: str) -> list[str]:
    """Command lines of living processes that contain ``text``."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if text in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def wait_until(condition, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def has_frames(logdir: pathlib.Path) -> bool:
    """Whether a run has trained a little."""
    if not (logdir / "metrics.csv").exists():
        return False
    rows = metrics_of(logdir)
    return bool(rows) and int(rows[-1]["frames"] or 0) > 0


@pytest.mark.slow
def test_local_training_leaves_what_it_promises_and_goes_on(run_python, tmp_path):
    logdir = tmp_path / "run"
    flags = [*CARTPOLE, f"--logdir={logdir}", "--num_actors=2"]
    flags += ["--save_checkpoint_secs=0.5", "--keep_checkpoints=2"]
    first = run_python("experiment.py", *flags, "--total_environment_frames=30000")
    assert first.returncode == 0, first.stderr
    assert not processes_with(str(logdir))
    frames = frames_of(logdir)
    assert frames >= 30000
    assert json.loads((logdir / "config.json").read_text())["flags"]["num_envs"] == 8
    assert json.loads((logdir / "checkpoint.json").read_text())["newest"] == (
        f"checkpoint-{frames}.pt"
    )
    assert first.stderr.count("checkpoint: ") > 2
    assert len(list(logdir.glob("checkpoint-*.pt"))) == 2
    assert list(logdir.glob("events.out.tfevents.*"))
    actors_log = (logdir / "workers" / "actor-0-1.log").read_text()
    assert "run has ended" in actors_log
    # Over a socket that only this user can open, and of which nothing is left.
    socket_path = re.search(r"welcomed by the learner at ipc://(/\S+)", actors_log)[1]
    assert not pathlib.Path(socket_path).parent.exists()
    assert "open to all users" not in first.stderr
    rows = metrics_of(logdir)
    last = rows[-1]
    assert int(last["frames"]) == frames
    assert int(last["updates"]) * 16 * 20 == frames  # one frame an agent step
    assert float(last["learning_rate"]) == 0
    assert float(last["episode_raw_return"]) > 15
    assert max(int(row["actors"]) for row in rows) == 2
    assert "frames/s" in first.stderr
    assert "left 0:00:00" in first.stderr
    card = json.loads((logdir / "results.json").read_text())
    assert (card["environment_frames"], card["games"]) == (frames, int(last["games"]))
    assert card["raw_return"]["last"] == pytest.approx(float(last["episode_raw_return"]))
    assert "trained" in first.stderr.split("results (")[1]
    description = json.loads((logdir / "config.json").read_text())
    assert description["versions"]["torch"] == torch.__version__
    assert len(description["git_commit"].rstrip("+")) in (0, 40)
    assert description["host"]
    assert description["hardware"]["cores"] >= 1

    same = tmp_path / "same"
    again = [f"--config={logdir / 'config.json'}", f"--logdir={same}", "--quiet"]
    repeated = run_python("experiment.py", *again)
    assert (repeated.returncode, repeated.stderr) == (0, "")
    same_flags = json.loads((same / "config.json").read_text())["flags"]
    changed = {"logdir": str(same), "quiet": True}
    assert same_flags == description["flags"] | changed
    assert "frames/s" in (same / "workers" / "learner-0-0.log").read_text()

    second = run_python("experiment.py", *flags, "--total_environment_frames=60000")
    assert second.returncode == 0, second.stderr
    assert f"going on from {frames:,} frames" in second.stderr
    assert frames_of(logdir) >= 60000
    continued = metrics_of(logdir)
    assert continued[: len(rows)] == rows
    first_new = next(row for row in continued[len(rows) :] if int(row["frames"]) > frames)
    # Neither the count of games nor the learning rate starts again.
    assert int(first_new["games"]) >= int(last["games"])
    assert float(first_new["learning_rate"]) < 0.002 * (1 - frames / 60000) + 1e-9

    test = run_python(
        *("experiment.py", "--mode=test", f"--logdir={logdir}", "--test_num_episodes=7"),
        "--num_envs=3",
    )
    assert test.returncode == 0, test.stderr
    for word in ("games 7", "mean", "median", "standard deviation", "minimum", "maximum"):
        assert word in test.stdout


@pytest.mark.slow
def test_actors_and_the_evaluator_look_for_modules_where_the_page_says(run_python, tmp_path):
    """The project's, PYTHONPATH's and what is installed, then the working directory's."""
    here, lib, logdir = tmp_path / "here", tmp_path / "lib", tmp_path / "run"
    for name in ("impala_torch", "zmq", "levels"):  # each found somewhere else before
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text(f"raise RuntimeError('{name} of here')\n")
    (here / "beside.py").write_text("ENTRY = 'gymnasium.envs.classic_control:CartPoleEnv'\n")
    lib.mkdir()
    (lib / "levels.py").write_text(
        "import beside, gymnasium\n"
        "gymnasium.register('Mine-v0', beside.ENTRY, max_episode_steps=500)\n"
    )
    done = run_python(
        *(ROOT / "experiment.py", *CARTPOLE, "--level_name=levels:Mine-v0", f"--logdir={logdir}"),
        *("--num_actors=1", "--total_environment_frames=4000", "--eval_interval_frames=2000"),
        "--test_num_episodes=2",
        cwd=here,
        env={"PYTHONPATH": str(lib)},
    )
    assert done.returncode == 0, done.stderr
    assert "run has ended" in (logdir / "workers" / "actor-0-0.log").read_text()
    assert (logdir / "evaluation.csv").exists(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_local_training_with_a_checkpoint(start, tmp_path, number):
    logdir = tmp_path / "run"
    run = start([sys.executable, "experiment.py", *CARTPOLE, f"--logdir={logdir}"])
    wait_until(lambda: has_frames(logdir))
    run.send_signal(number)
    assert run.wait(timeout=30) == 0
    assert frames_of(logdir) > 0
    assert not processes_with(str(logdir))


@pytest.mark.slow
def test_children_do_not_outlive_a_killed_run(start, tmp_path):
    logdir = tmp_path / "run"
    run = start([sys.executable, "experiment.py", *CARTPOLE, f"--logdir={logdir}"])
    wait_until(lambda: has_frames(logdir))
    assert len(processes_with(str(logdir))) > 1
    run.kill()
    run.wait(timeout=10)
    wait_until(lambda: not processes_with(str(logdir)), timeout=20)


@pytest.mark.slow
def test_a_full_disk_is_told_and_training_goes_on(start, small_disk):
    """Without room, and with room again; at the end it is told that the last checkpoint failed."""
    flags = [*CARTPOLE, f"--logdir={small_disk}", "--num_actors=1", "--save_checkpoint_secs=0.5"]
    run = start(
        [sys.executable, "experiment.py", *flags, "--keep_checkpoints=1"],
        stderr=(output := small_disk.with_name("output")).open("w"),
    )
    filler = small_disk / "filler"
    wait_until(lambda: list(small_disk.glob("checkpoint-*.pt")))
    fill(filler)
    wait_until(lambda: "No space left on device; the one before stays" in output.read_text())
    before = frames_of(small_disk)
    filler.unlink()
    wait_until(lambda: frames_of(small_disk) > before)
    fill(filler)
    told = output.read_text().count("the one before stays")
    wait_until(lambda: output.read_text().count("the one before stays") > told)
    before = frames_of(small_disk)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 1
    assert "training since the checkpoint before is lost" in output.read_text()
    assert frames_of(small_disk) == before
    filler.unlink()
    assert all(None not in row and row["actors"] for row in metrics_of(small_disk))


@pytest.mark.slow
def test_atari_trains_and_is_tested(run_python, tmp_path):
    logdir = tmp_path / "run"
    flags = [
        "--level_name=ALE/Breakout-v5",
        "--agent_name=ShallowConvLSTMAgent",
        "--num_envs=4",
        f"--logdir={logdir}",
    ]
    train = run_python(
        *("experiment.py", *flags, "--batch_size=4", "--unroll_length=10", "--progress_secs=1"),
        *("--num_actors=1", "--total_environment_frames=12000"),
    )
    assert train.returncode == 0, train.stderr
    last = metrics_of(logdir)[-1]
    assert int(last["updates"]) * 4 * 10 * 4 == int(last["frames"])  # four frames an agent step
    test = run_python("experiment.py", "--mode=test", f"--logdir={logdir}", "--test_num_episodes=2")
    assert test.returncode == 0, test.stderr
    assert "games 2" in test.stdout


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_convolutional_agent_learns_in_either_precision(run_python, tmp_path, precision):
    flags = ["--level_name=tests.fakes:PixelCatch-v0", "--agent_name=ShallowConvNetAgent"]
    flags += ["--batch_size=8", "--unroll_length=10", "--num_envs=8", "--progress_secs=1"]
    flags += ["--learning_rate=0.0003", "--epsilon=0.001", "--total_environment_frames=16000"]
    done = run_python(
        "experiment.py", *flags, f"--precision={precision}", f"--logdir={tmp_path}", timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = metrics_of(tmp_path)
    assert float(rows[-1]["episode_raw_return"]) >= 9.5  # 5 is chance, 10 the most there is


@pytest.mark.slow
def test_two_learners_by_hand_learn_cartpole(start, free_port, tmp_path):
    """As the TensorFlow original is started: mpirun for the learners, actors before or after."""
    logdir = tmp_path / "run"
    hosts = [f"localhost:{free_port()}", f"localhost:{free_port()}"]
    flags = ["--preset=classic", "--batch_size=8", "--num_envs=8", "--progress_secs=1"]
    flags += [f"--logdir={logdir}", "--total_environment_frames=80000"]

    def job(name: str, task: int, host: str) -> list[str]:
        return [
            *(sys.executable, "experiment.py", f"--job_name={name}", f"--task={task}"),
            *(f"--learner_host={host}", "--actor_hosts=localhost:9000", *flags),
        ]

    early = start(job("actor", 0, hosts[0]))
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    context = ["-np", "1", "-H", "localhost:2"]
    learners = start(
        [
            *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
            *("--mca", "btl_vader_single_copy_mechanism", "none"),
            *context,
            *job("learner", 0, hosts[0]),
            ":",
            *context,
            *job("learner", 1, hosts[1]),
        ]
    )
    wait_until(lambda: (logdir / "workers" / "learner-1-1.log").exists(), timeout=60)
    late = start(job("actor", 0, hosts[1]))
    assert learners.wait(timeout=600) == 0
    assert early.wait(timeout=30) == 0
    assert late.wait(timeout=30) == 0
    rows = metrics_of(logdir)
    assert max(int(row["actors"]) for row in rows) == 2
    assert max(float(row["episode_raw_return"] or 0) for row in rows) >= 400
    # Four uses of each batch, in four minibatches.
    assert int(rows[-1]["updates"]) // (4 * 4) * 2 * 8 * 64 == int(rows[-1]["frames"])


@pytest.mark.slow
def test_a_learner_without_actors_learns_from_what_the_others_have(start, free_port, tmp_path):
    """The second learner's actor never comes, and nobody waits for it."""
    logdir = tmp_path / "run"
    hosts = [f"localhost:{free_port()}", f"localhost:{free_port()}"]
    flags = [*CARTPOLE, f"--logdir={logdir}", "--total_environment_frames=200000"]

    def job(name: str, task: int, host: str) -> list[str]:
        return [
            *(sys.executable, "experiment.py", f"--job_name={name}", f"--task={task}"),
            *(f"--learner_host={host}", "--actor_hosts=localhost:9000", *flags),
        ]

    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    context = ["-np", "1", "-H", "localhost:2"]
    learners = start(
        [
            *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
            *("--mca", "btl_vader_single_copy_mechanism", "none"),
            *(*context, *job("learner", 0, hosts[0])),
            *(":", *context, *job("learner", 1, hosts[1])),
        ]
    )
    actor = start(job("actor", 0, hosts[0]))
    assert learners.wait(timeout=600) == 0
    assert actor.wait(timeout=30) == 0
    rows = metrics_of(logdir)
    assert int(rows[-1]["frames"]) >= 200_000
    assert int(rows[-1]["actors"]) == 1
    # Every other batch is of the first learner's actor, learned from by the second.
    shared = [float(row["shared_share"]) for row in rows if int(row["frames"]) > 20_000]
    assert sum(shared) / len(shared) == pytest.approx(0.5, abs=0.1)
    assert all(float(row["policy_lag"]) >= 0 for row in rows if row["policy_lag"])


@pytest.mark.slow
def test_one_learner_by_hand_and_actors_that_do_not_fit(start, run_python, free_port, tmp_path):
    logdir, host = tmp_path / "run", f"localhost:{free_port()}"
    made = run_python("-m", "impala_torch.endpoint.keys", tmp_path / "run.key")
    assert made.returncode == 0, made.stderr
    flags = [*CARTPOLE, f"--learner_host={host}", "--actor_hosts=localhost:9000,localhost:9001"]
    flags.append(f"--key_file={tmp_path / 'run.key'}")
    learning = ["--job_name=learner", "--task=0", f"--logdir={logdir}", *flags]
    learner = start([sys.executable, "experiment.py", *learning])
    wrong = run_python(
        *("experiment.py", "--job_name=actor", "--task=0", *flags, "--unroll_length=30")
    )
    assert wrong.returncode == 2
    assert "its unroll_length is 30, the learner's 20" in wrong.stderr
    actor = start([sys.executable, "experiment.py", "--job_name=actor", "--task=1", *flags])
    wait_until(lambda: has_frames(logdir))
    learner.send_signal(signal.SIGTERM)
    assert learner.wait(timeout=30) == 0
    assert actor.wait(timeout=30) == 0
    assert frames_of(logdir) > 0


BAD = {
    "unknown flag": (["--batchsize=3"], "batchsize"),
    "no number": (["--batch_size=three"], "batch_size"),
    "zero": (["--batch_size=0"], "--batch_size must be more than 0"),
    "unknown choice": (["--reward_clipping=some"], "reward_clipping"),
    "positional": (["train"], "'train' is not a flag"),
    "unknown agent": (["--agent_name=Agent"], "SimpleConvNetAgent"),
    "agent of vectors": (["--agent_name=MLPAgent"], "does not fit the level"),
    "unknown game": (["--level_name=PongoNoFrameskip-v4"], "did you mean Pong"),
    "unknown level": (["--level_name=NoSuchLevel-v0"], "NoSuchLevel-v0"),
    "continuous": (["--level_name=Pendulum-v1", "--agent_name=MLPAgent"], "continuous"),
    "task outside": (["--job_name=actor", "--task=1"], "--task=1 is outside --actor_hosts"),
    "actor without task": (["--job_name=actor"], "needs --task"),
    "bad port": (["--learner_host=localhost:80x"], "'80x'"),
    "no port": (["--learner_host=localhost"], "ip:port"),
    "unwritable logdir": (["--logdir=/proc/none"], "--logdir=/proc/none cannot be written"),
    "test without logdir": (["--mode=test"], "needs --logdir"),
    "test without run": (["--mode=test", "--logdir=/nowhere"], "/nowhere is not a directory"),
    "open on a network": (
        ["--job_name=learner", "--task=0", "--learner_host=0.0.0.0:8001", "--logdir=OUT"],
        "--key_file",
    ),
    "device": (["--device=tpu", "--logdir=OUT"], "--device=tpu"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(run_python, tmp_path, name):
    flags, said = BAD[name]
    flags = [flag.replace("OUT", str(tmp_path)) for flag in flags]
    # Run elsewhere: the default logdir is under the working directory.
    result = run_python(ROOT / "experiment.py", *flags, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1


@pytest.mark.slow
def test_another_agents_checkpoint_is_refused(run_python, tmp_path):
    logdir = tmp_path / "run"
    flags = [*CARTPOLE, f"--logdir={logdir}", "--total_environment_frames=2000"]
    assert run_python("experiment.py", *flags).returncode == 0
    before = frames_of(logdir)
    for job in ([], ["--mode=test"]):
        result = run_python("experiment.py", *flags, "--agent_name=MLPLSTMAgent", *job)
        assert result.returncode == 2
        assert "trained with --agent_name=MLPAgent, not MLPLSTMAgent" in result.stderr
        assert "Traceback" not in result.stderr
    assert frames_of(logdir) == before


def test_helpfull_reads_like_a_manual(run_python):
    result = run_python("experiment.py", "--helpfull")
    assert run_python("-m", "impala_torch", "--helpfull").stdout == result.stdout
    text = result.stdout + result.stderr
    assert text.startswith("IMPALA, one process of it")
    for word in ("the environment", "the optimizer", "--entropy_cost", "T: agent steps"):
        assert word in text


def test_an_actor_loads_no_horovod_and_no_tensorboard(run_python):
    code = (
        "import sys; from impala_torch import actor;"
        "assert not {'horovod', 'mpi4py', 'tensorboard'} & set(sys.modules)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_appo_learns_goes_on_with_what_it_kept_and_is_played(run_python, tmp_path):
    logdir = tmp_path / "run"
    flags = ["--algorithm=appo", "--level_name=CartPole-v1", "--agent_name=MLPAgent"]
    flags += ["--reward_clipping=none", "--normalize_observations", "--normalize_values"]
    flags += ["--num_actors=2", "--progress_secs=1", f"--logdir={logdir}"]
    first = run_python("experiment.py", *flags, "--total_environment_frames=100000")
    assert first.returncode == 0, first.stderr
    rows = metrics_of(logdir)
    assert float(rows[-1]["episode_raw_return"]) > 60
    assert {"kl", "clipped_share"} <= rows[-1].keys()
    kept = checkpoint.restore(logdir)["algorithm"]["learning_rate_scale"]
    frames = frames_of(logdir)
    # 32 unrolls of 32 steps a batch, twice in two minibatches.
    assert int(rows[-1]["updates"]) * 32 * 32 == frames * 2 * 2
    wrong = run_python("experiment.py", f"--logdir={logdir}", *flags[1:4])
    assert wrong.returncode == 2
    assert "was trained with --normalize_observations=True" in wrong.stderr
    more = run_python("experiment.py", *flags, "--total_environment_frames=130000")
    assert more.returncode == 0, more.stderr
    assert f"going on from {frames:,} frames" in more.stderr
    assert kept != 1 or len(rows) < 3
    played = run_python("experiment.py", "--mode=test", f"--logdir={logdir}")
    assert played.returncode == 0, played.stderr
    assert "mean" in played.stdout


FAKES = [
    "--agent_name=MLPAgent",
    "--batch_size=8",
    "--unroll_length=10",
    "--num_envs=4",
    "--num_actors=2",
    "--reward_clipping=none",
    "--progress_secs=0.5",
]


# With rewards of 1e12 the square of the gradient is no float32.
TOO_LARGE = [*FAKES, "--baseline_cost=1e10", "--total_environment_frames=20000"]


@pytest.mark.slow
def test_one_number_that_is_too_large_costs_updates_and_not_the_run(run_python, tmp_path):
    """Each of the 8 environments gives it once."""
    level = "--level_name=tests.fakes:LargeRewardOnce-v0"
    done = run_python("experiment.py", *TOO_LARGE, level, f"--logdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    last = metrics_of(tmp_path)[-1]
    skipped = int(last["skipped_updates"])
    assert 1 <= skipped <= 8
    assert int(last["updates"]) + skipped == int(last["frames"]) // 80
    assert json.loads((tmp_path / "results.json").read_text())["skipped_updates"] == skipped
    assert "is not made" in done.stderr
    assert "the largest reward 1e+12, of actor 0-" in done.stderr
    assert f"skipped updates     {skipped}, not finite" in done.stderr


@pytest.mark.slow
def test_numbers_that_stay_too_large_end_the_run_with_the_last_good_weights(run_python, tmp_path):
    level = "--level_name=tests.fakes:LargeReward-v0"
    done = run_python("experiment.py", *TOO_LARGE, level, f"--logdir={tmp_path}")
    assert done.returncode == exit_codes.NOT_FINITE, done.stderr
    assert "error: 10 batches in a row gave no gradient that is finite" in done.stderr
    assert "Traceback" not in done.stderr
    state = checkpoint.restore(tmp_path)
    assert (state["updates"], state["skipped"]) == (0, 10)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert not processes_with(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("NanReward", "environment 0, step 3, action {}: its reward is nan, which is not finite"),
        ("Hangs", "environment 0, step 3, action {}: it has not returned for"),
        ("Raises", "environment 0, step 3, action {}: it raised KeyError: 'no such key'"),
    ],
)
def test_an_actor_whose_environment_fails_is_told_and_started_again(start, tmp_path, level, said):
    flags = [*FAKES, f"--level_name=tests.fakes:{level}-v0", f"--logdir={tmp_path / 'run'}"]
    env = {"PYTHONPATH": str(ROOT)}
    process = start([sys.executable, "experiment.py", *flags, "--env_timeout=2"], env=env)
    learner_log = tmp_path / "run" / "workers" / "learner-0-0.log"

    def again() -> bool:
        return learner_log.exists() and learner_log.read_text().count("started again in 2 s") == 2

    wait_until(again, timeout=120)
    actor_log = (tmp_path / "run" / "workers" / "actor-0-0.log").read_text()
    prefix = f"--level_name=tests.fakes:{level}-v0, "
    assert any(prefix + said.format(action) in actor_log for action in (0, 1))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert not processes_with(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("RaiseWhenMade", " cannot be made: "),
        ("HangWhenMade", ", being made: it has not returned for 3 s"),
    ],
)
def test_an_environment_that_cannot_be_made_for_a_while_is_tried_again(
    run_python, tmp_path, level, said
):
    """The learner has made one already, and so has the actor, so that the flags are right."""
    logdir = tmp_path / "run"
    flags = [*FAKES, f"--level_name=tests.fakes:{level}Once-v0", f"--logdir={logdir}"]
    flags += ["--num_actors=1", "--total_environment_frames=800", "--env_timeout=3"]
    env = {"FUSSY_ONCE": str(tmp_path / "once")}
    done = run_python("experiment.py", *flags, env=env)
    assert done.returncode == 0, done.stderr
    assert "actor 0 ended with exit code 1: it is started again in 1 s" in done.stderr
    log = (logdir / "workers" / "actor-0-0.log").read_text()
    assert f"--level_name=tests.fakes:{level}Once-v0{said}" in log
    assert "welcomed by the learner" in log.split(said)[0]


@pytest.mark.slow
def test_an_environment_that_does_not_close_is_told(run_python, tmp_path):
    logdir = tmp_path / "run"
    level = "tests.fakes:HangWhenClosedOnce-v0"
    flags = [*FAKES, f"--level_name={level}", f"--logdir={logdir}", "--num_actors=1"]
    flags += ["--total_environment_frames=800", "--env_timeout=3"]
    done = run_python("experiment.py", *flags, env={"FUSSY_ONCE": str(tmp_path / "once")})
    assert done.returncode == 0, done.stderr
    log = (logdir / "workers" / "actor-0-0.log").read_text()
    assert f"--level_name={level}, being closed: it has not returned for 3 s" in log


@pytest.mark.slow
def test_threads_and_signal_handlers_of_an_environment_keep_no_process(start, tmp_path):
    logdir = tmp_path / "run"
    flags = [*FAKES, "--level_name=tests.fakes:Careless-v0", f"--logdir={logdir}"]
    with open(tmp_path / "output", "w") as output:
        process = start(
            [sys.executable, "experiment.py", *flags, "--num_actors=1"],
            env={"PYTHONPATH": str(ROOT)},
            stderr=output,
        )
    wait_until(lambda: has_frames(logdir))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    said = "threads that were left behind do not end, and are ended: reader"
    for path in (tmp_path / "output", logdir / "workers" / "actor-0-0.log"):
        assert said in path.read_text()
    assert "sending it" not in (tmp_path / "output").read_text()
    assert not processes_with(str(logdir))


@pytest.mark.slow
def test_a_game_without_an_end_is_cut_in_test_mode(run_python, tmp_path):
    level = "--level_name=tests.fakes:Endless-v0"
    flags = [*FAKES, level, f"--logdir={tmp_path}"]
    trained = run_python("experiment.py", *flags, "--total_environment_frames=800")
    assert trained.returncode == 0, trained.stderr
    limits = ["--mode=test", "--test_num_episodes=3", "--max_episode_steps=50"]
    played = run_python("experiment.py", f"--logdir={tmp_path}", *limits)
    assert played.returncode == 0, played.stderr
    assert played.stdout.startswith("games 3 (3 cut by the limit of frames)  mean 50.00")
    card = json.loads((tmp_path / "evaluation.json").read_text())
    assert (card["cut"], card["game_frames"], card["protocol"]["max_frames"]) == (3, [50] * 3, 50)
