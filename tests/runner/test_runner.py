"""The experiment runner: descriptions, real processes side by side, Ctrl-C, Slurm, results."""

import json
import shlex
import signal
import sys

import av
import pytest

from impala_torch.flags.errors import UserError
from impala_torch.plot import __main__ as plot
from impala_torch.runner import Experiment, ParamGrid, ParamList, RunDescription, load, results
from impala_torch.runner import frontend as through
from impala_torch.runner.processes import Limits
from tests import slurm_rig
from tests.conftest import ROOT
from tests.test_experiment import (
    CARTPOLE,
    frames_of,
    has_frames,
    metrics_of,
    processes_with,
    wait_until,
)

# --- descriptions -------------------------------------------------------------------------------

GRID = [("seed", [1, 2, 3]), (("a", "b"), [("x", 8), ("y", 16)])]


def test_a_grid_has_every_combination_the_first_slowest():
    assert list(ParamGrid(GRID).generate_params()) == [
        {"seed": 1, "a": "x", "b": 8},
        {"seed": 1, "a": "y", "b": 16},
        {"seed": 2, "a": "x", "b": 8},
        {"seed": 2, "a": "y", "b": 16},
        {"seed": 3, "a": "x", "b": 8},
        {"seed": 3, "a": "y", "b": 16},
    ]
    assert list(ParamGrid([]).generate_params()) == []


def test_a_shuffled_order_is_the_same_in_every_call_and_version():
    grid = ParamGrid([("seed", range(8))])
    seeds = [one["seed"] for one in grid.generate_params(randomize=True)]
    assert seeds == [3, 7, 5, 2, 4, 1, 6, 0]
    other = [one["seed"] for one in grid.generate_params(randomize=True, seed=1)]
    assert other != seeds
    assert sorted(other) == sorted(seeds) == list(range(8))
    listed = ParamList([{"seed": seed} for seed in range(8)])
    assert [one["seed"] for one in listed.generate_params()] == seeds
    assert [one["seed"] for one in listed.generate_params(randomize=False)] == list(range(8))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([("seed", [])], "no values for 'seed'"),
        ([("seed", [1]), (("a", "seed"), [(1, 2)])], "'seed' twice"),
        ([(("a", "b"), [(1, 2, 3)])], "not a value for each"),
        ([(("a", "b"), ["xy"])], "not a value for each"),
    ],
)
def test_a_grid_that_cannot_be_is_told(grid, said):
    with pytest.raises(UserError, match=said):
        ParamGrid(grid)


def described(*experiments, **kwargs):
    return RunDescription("my run", list(experiments), **kwargs)


def test_names_commands_and_directories_are_sample_factorys():
    params = [{"seed": 1, "learning_rate": 0.1, "learning_rating": 2, "level_name": "ALE/Pong-v5"}]
    one, two = described(
        Experiment("pong", "python experiment.py --x='a b'", params, env_vars={"N": 3}),
        Experiment("plain", "python3 other.py"),
    ).tasks("/td")
    assert one.name == "00_pong_see_1_l.rat_0.1_l.rati_2_l.nam_ALE-Pong-v5"
    assert str(one.directory) == f"/td/my-run/pong/{one.name}"
    assert one.command == [
        *(sys.executable, "experiment.py", "--x=a b", "--seed=1", "--learning_rate=0.1"),
        *("--learning_rating=2", "--level_name=ALE/Pong-v5", f"--logdir={one.directory}"),
    ]
    assert one.env == {"N": "3"}
    assert two.command == [sys.executable, "other.py", "--logdir=/td/my-run/plain/00_plain"]


def test_other_programs_flags_can_be_named():
    run = described(
        Experiment("doom", "python -m sf", ParamGrid([("seed", [5])])),
        experiment_arg_name="--experiment",
        experiment_dir_arg_name="--train_dir",
        customize_experiment_name=False,
        param_prefix="",
    )
    run.experiment_suffix = "v2"
    (task,) = run.tasks("/td")
    assert task.command[1:] == [
        *("-m", "sf", "seed=5", "--experiment=00_doom", "--train_dir=/td/my-run/doom_v2")
    ]


def test_two_experiments_of_one_name_or_none_are_told():
    with pytest.raises(UserError, match="two experiments named 'a'"):
        described(Experiment("a", "x"), Experiment("a", "y")).tasks()
    with pytest.raises(UserError, match="no experiments"):
        described().tasks()
    with pytest.raises(UserError, match="empty cmd"):
        described(Experiment("a", " ")).tasks()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "defines no RUN_DESCRIPTION"),
        ("RUN_DESCRIPTION = 3", "is a int, not a RunDescription"),
        ("\nx = 1 / 0", "ZeroDivisionError: division by zero .*d.py, line 2"),
        ("import nosuch.module", "No module named 'nosuch'"),
        ("x = (", "SyntaxError"),
    ],
)
def test_a_description_that_is_none_is_told(tmp_path, text, said):
    (tmp_path / "d.py").write_text(text)
    with pytest.raises(UserError, match=said):
        load.load(str(tmp_path / "d.py"))


def test_a_description_is_found_by_module_and_by_file(tmp_path, monkeypatch):
    by_file = load.load(str(ROOT / "sandbox" / "examples" / "cartpole_seeds.py"))
    monkeypatch.chdir(ROOT)
    assert load.load("sandbox.examples.cartpole_seeds").tasks() == by_file.tasks()
    for run in ("nosuch.module", "sandbox.examples.nosuch", str(tmp_path / "nosuch.py")):
        with pytest.raises(UserError, match="there is no"):
            load.load(run)


# --- on this machine ----------------------------------------------------------------------------


@pytest.fixture
def runner(run_python, tmp_path):
    """Writes a description of experiments (source text), and calls the runner on it."""
    path = tmp_path / "description.py"

    def call(*options, experiments="", code=0, **kwargs):
        if experiments:
            text = "import sys\nfrom impala_torch.runner import *\n"
            path.write_text(f"{text}RUN_DESCRIPTION = RunDescription('run', [{experiments}])\n")
        argv = ["-m", "impala_torch.runner", f"--run={path}", f"--train_dir={tmp_path / 'td'}"]
        done = run_python(*argv, "--pause_between=0", *options, **kwargs)
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


def shell(name: str, script: str, params: str = "()") -> str:
    """An experiment of a shell script; $0 is a word, the flags follow."""
    return f"Experiment({name!r}, {shlex.join(['bash', '-c', script, 'bash'])!r}, {params})"


def state_of(tmp_path, name: str) -> dict:
    (path,) = tmp_path.glob(f"td/run/*/{name}/state.json")
    return json.loads(path.read_text())


def test_what_finished_is_left_out_and_what_failed_is_named(runner, tmp_path):
    mark = tmp_path / "mark"
    good = shell("good", "echo hello $*", "[{'seed': 1}, {'seed': 2}]")
    bad = shell("bad", f"echo told; echo why >&2; test -e {mark} && exit 0; exit 3")
    missing = "Experiment('missing', '/no/such/program')"
    everything = ", ".join([good, bad, missing])
    done = runner(experiments=everything, code=1)
    assert "FAILED: 00_bad, exit code 3" in done.stderr
    assert "    told\n    why\n" in done.stderr
    assert "failed: 00_bad, 00_missing" in done.stderr
    assert "cannot run /no/such/program: No such file" in done.stderr
    assert "failed (3)" in done.stdout
    assert done.stdout.count("finished") == 2
    state = state_of(tmp_path, "01_good_see_2")
    assert (state["status"], state["exit_code"], state["starts"]) == ("finished", 0, 1)
    folder = tmp_path / "td" / "run" / "good" / "01_good_see_2"
    assert f"hello --seed=2 --logdir={folder}\n" in (folder / "output.log").read_text()
    assert shlex.split((folder / "command.txt").read_text()) == state["command"]

    mark.touch()
    done = runner("--quiet", code=1)
    assert state_of(tmp_path, "01_good_see_2") == state
    assert state_of(tmp_path, "00_bad")["starts"] == 2
    assert done.stderr.splitlines()[0].startswith("FAILED: 00_missing, exit code 127")
    assert done.stderr.splitlines()[-1] == "failed: 00_missing"

    # With another command, it is another experiment; and all are with --rerun.
    runner(experiments=good.replace("hello", "bye"))
    assert state_of(tmp_path, "01_good_see_2")["starts"] == 2
    assert "finished before: 01_good_see_2" in runner().stderr
    runner("--rerun")
    assert state_of(tmp_path, "01_good_see_2")["starts"] == 3


def test_so_many_run_at_a_time_and_gpus_are_dealt(runner, tmp_path):
    """Each waits until two have begun, and says how many there were and which GPU it has."""
    folder = tmp_path / "running"
    folder.mkdir()
    script = (
        f"cd {folder}; touch -- $1; echo gpu $CUDA_VISIBLE_DEVICES $MINE >{tmp_path}/$1.txt; "
        f"until [ -e {tmp_path}/two ]; do sleep 0.1; [ $(ls | wc -l) -lt 2 ] || "
        f"touch {tmp_path}/two; done; "
        f"ls | wc -l >>{tmp_path}/$1.txt; rm -- $1"
    )
    experiments = shell("e", script, "[{'seed': n} for n in range(5)], {'MINE': 's3cret'}")
    options = ["--max_parallel=4", "--experiments_per_gpu=1", "--num_gpus=2"]
    env = {"CUDA_VISIBLE_DEVICES": "3,5,7"}
    done = runner(*options, experiments=experiments, env=env)
    said = [(tmp_path / f"--seed={n}.txt").read_text().splitlines() for n in range(5)]
    assert {lines[0] for lines in said} == {"gpu 3 s3cret", "gpu 5 s3cret"}
    assert max(int(lines[1]) for lines in said) == 2
    # Values of variables may be secrets: their names alone are kept.
    kept = b"".join(path.read_bytes() for path in (tmp_path / "td").rglob("*") if path.is_file())
    assert b"s3cret" not in kept + (done.stdout + done.stderr).encode()
    assert "MINE=... bash" in runner("--dry_run").stdout


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(0), "--max_parallel"),
        (Limits(1, pause_between=-1), "--pause_between"),
        (Limits(1, experiments_per_gpu=2, num_gpus=0), "--num_gpus"),
        (Limits(1, experiments_per_gpu=2, num_gpus=3), "CUDA_VISIBLE_DEVICES=3,5"),
    ],
)
def test_limits_that_cannot_be_are_told(limits, said):
    with pytest.raises(UserError, match=said):
        limits.devices({"CUDA_VISIBLE_DEVICES": "3,5"})


def test_gpus_are_numbered_where_nobody_names_them():
    assert Limits(1, experiments_per_gpu=1, num_gpus=2).devices({}) == ["0", "1"]
    assert Limits(1, num_gpus=2).devices({}) == []


def test_a_second_signal_ends_what_ignores_the_first(runner, start, tmp_path):
    runner("--dry_run", experiments=shell("e", f"trap '' INT TERM; touch {tmp_path}/up; sleep 99"))
    argv = ["-m", "impala_torch.runner", f"--run={tmp_path}/description.py"]
    run = start([sys.executable, *argv, f"--train_dir={tmp_path}/td"])
    wait_until((tmp_path / "up").exists)
    run.send_signal(signal.SIGINT)
    log = tmp_path / "td" / "run" / "e" / "00_e" / "output.log"
    wait_until(lambda: "SIGINT to the command" in log.read_text())
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    state = state_of(tmp_path, "00_e")
    assert (state["status"], state["exit_code"]) == ("stopped", -signal.SIGKILL)


def test_children_end_with_a_killed_runner_and_two_runners_share_nothing(runner, start, tmp_path):
    runner("--dry_run", experiments=shell("e", f"touch {tmp_path}/up; sleep 99 & wait"))
    argv = ["-m", "impala_torch.runner", f"--run={tmp_path}/description.py"]
    run = start([sys.executable, *argv, f"--train_dir={tmp_path}/td"])
    wait_until((tmp_path / "up").exists)
    second = runner()
    assert "left alone: 00_e, which another runner has" in second.stderr
    assert "running" in second.stdout
    run.kill()
    run.wait(timeout=10)
    wait_until(lambda: state_of(tmp_path, "00_e")["status"] == "stopped", timeout=30)
    wait_until(lambda: not processes_with(str(tmp_path)), timeout=30)


SEEDS = "ParamGrid([('seed', [1, 2, 3, 4])])"


def cartpole(frames: int, params: str) -> str:
    flags = [*CARTPOLE, "--num_actors=1", "--learner_threads=1", "--progress_secs=0.1"]
    flags.append(f"--total_environment_frames={frames}")
    command = shlex.join(["python", str(ROOT / "experiment.py"), *flags])
    return f"Experiment('cartpole', {command!r}, {params})"


@pytest.mark.slow
def test_four_seeds_two_at_a_time_train_and_a_bad_flag_is_told(
    runner, run_python, tmp_path, capsys
):
    bad = f"Experiment('bad', 'python {ROOT}/experiment.py --no_such_flag=1')"
    experiments = f"{bad}, {cartpole(4000, SEEDS)}"
    done = runner("--max_parallel=2", experiments=experiments, code=1)
    assert "no_such_flag" in done.stderr
    for number in range(4):
        folder = tmp_path / "td" / "run" / "cartpole" / f"0{number}_cartpole_see_{number + 1}"
        assert frames_of(folder) >= 4000
        assert json.loads((folder / "config.json").read_text())["flags"]["seed"] == number + 1
    tasks = load.load(str(tmp_path / "description.py")).tasks(str(tmp_path / "td"))
    found = results.ranked([results.result_of(task) for task in tasks])
    # The table's order and numbers are those of the files.
    assert found[-1].task.name == "00_bad"
    rows = [metrics_of(one.task.directory) for one in found[:-1]]
    returns = [
        max(float(row["episode_raw_return"]) for row in some if row["games_in_mean"] == "100")
        for some in rows
    ]
    assert [one.best for one in found[:-1]] == returns == sorted(returns, reverse=True)
    shown = runner("--results").stdout.splitlines()
    places = [
        next(i for i, line in enumerate(shown) if one.task.name in line and "td" not in line)
        for one in found
    ]
    assert places == sorted(places)
    best = found[0].task.directory
    assert results.newest_row(best).frames == found[0].frames == 4160
    assert results.total_frames(best) == 4000
    see_and_judge(tmp_path / "td" / "run", run_python, capsys)


def see_and_judge(folder, run_python, capsys) -> None:
    """What a user does with four seeds: one curve, one table, one video."""
    picture = folder / "curve.svg"
    assert plot.main([str(folder / "cartpole"), f"--out={picture}"]) == 0
    assert "1 line(s) of 4 run(s)" in capsys.readouterr().out
    assert "mean of 4 runs, lowest to highest" in picture.read_text()
    one = folder / "cartpole" / "02_cartpole_see_3"
    videos = folder / "videos"
    test = ("experiment.py", "--mode=test", f"--logdir={one}", "--test_num_episodes=2")
    told = run_python(*test, f"--record={videos}")
    assert told.returncode == 0, told.stderr
    scores = json.loads((one / "evaluation.json").read_text())["scores"]
    assert told.stdout.startswith("games 2  mean ")
    lengths = []
    for path in sorted(videos.glob("*.mp4")):
        with av.open(str(path)) as container:
            lengths.append(sum(1 for _ in container.decode(video=0)))
    # In CartPole a step is a point, and a picture.
    assert sorted(lengths) == sorted(int(score) for score in scores)


@pytest.mark.slow
def test_ctrl_c_ends_all_with_checkpoints_and_a_second_call_finishes(runner, start, tmp_path):
    frames = 40_000
    runner("--dry_run", experiments=cartpole(frames, "[{'seed': 1}, {'seed': 2}]"))
    argv = ["-m", "impala_torch.runner", f"--run={tmp_path}/description.py"]
    run = start([sys.executable, *argv, f"--train_dir={tmp_path}/td", "--max_parallel=1"])
    folder = tmp_path / "td" / "run" / "cartpole"
    first = folder / "00_cartpole_see_1"
    wait_until(lambda: has_frames(first))
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130
    assert not processes_with(str(tmp_path / "td"))
    assert state_of(tmp_path, "00_cartpole_see_1")["status"] == "stopped"
    assert 0 < frames_of(first) < frames
    stopped_at = frames_of(first)
    assert not (folder / "01_cartpole_see_2").exists()
    done = runner("--max_parallel=2")
    assert done.stdout.count("finished") == 2
    assert frames_of(first) >= frames
    assert f"going on from {stopped_at:,} frames" in (first / "output.log").read_text()


# --- the frontend -------------------------------------------------------------------------------


def test_the_frontends_command_stands_in_for_experiments(tmp_path):
    csv = tmp_path / "workers.csv"
    csv.touch()
    run = described(Experiment("a.b", "nice python p/experiment.py --x=1", [{"seed": 2}]))
    (task,) = through.through_frontend(run.tasks("/td"), "my run", str(csv))
    assert task.argv == [
        *("nice", "python", "p/run_experiment_mm_raw.py", f"--workers_csv_path={csv}"),
        *("--tmux_sess=my-run-00_a-b_see_2", "--follow", "--x=1", "--seed=2"),
    ]
    with pytest.raises(UserError, match="--workers_csv_path"):
        through.through_frontend(run.tasks(), "run", "")
    with pytest.raises(UserError, match="no such file"):
        through.through_frontend(run.tasks(), "run", "nosuch.csv")
    with pytest.raises(UserError, match="runs neither"):
        through.through_frontend(described(Experiment("a", "ls")).tasks(), "run", str(csv))


@pytest.mark.slow
def test_experiments_run_through_the_frontend_one_after_the_other(
    runner, tmux_env, free_port, tmp_path
):
    csv = tmp_path / "workers.csv"
    csv.write_text(
        "job,ip,tf_port,cuda_visible_devices,ssh_port,ssh_username,ssh_password\n"
        f"learner,localhost,{free_port()},,22,,\nactor,localhost,9001,,22,,\n"
    )
    done = runner(
        *("--runner=frontend", f"--workers_csv_path={csv}"),
        experiments=cartpole(4000, "[{'seed': 1}, {'seed': 2}]"),
        env=tmux_env,
        timeout=200,
    )
    assert done.stdout.count("finished") == 2
    first, second = (state_of(tmp_path, f"0{n - 1}_cartpole_see_{n}") for n in (1, 2))
    assert first["ended"] <= second["started"]
    folder = tmp_path / "td" / "run" / "cartpole" / "01_cartpole_see_2"
    assert frames_of(folder) >= 4000
    assert "frames/s" in (folder / "output.log").read_text()
    assert not processes_with(str(tmp_path / "td"))


# --- Slurm --------------------------------------------------------------------------------------


def test_slurms_commands_are_printed(runner, tmp_path):
    options = ["--runner=slurm", "--slurm_print_only=True", "--slurm_partition=gpu"]
    done = runner(*options, "--slurm_gpus_per_job=2", experiments=shell("e", "true"))
    folder = tmp_path / "td" / "run"
    assert shlex.split(done.stdout) == [
        *("sbatch", "--parsable", "--job-name=00_e", "--cpus-per-task=28", "--partition=gpu"),
        *("--gres=gpu:2", f"--output={folder}/e/00_e/output.log", "--open-mode=append"),
        f"{folder}/slurm/sbatch_e_00_e.sh",
    ]
    assert not folder.exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_rig.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.mark.slow
def test_slurm_runs_each_as_a_job_and_a_second_call_only_the_rest(cluster, runner, tmp_path):
    mark = tmp_path / "mark"
    good = shell("good", "echo on $SLURMD_NODENAME with $MINE", "(), {'MINE': 'mine'}")
    bad = shell("bad", f"test -e {mark} && exit 0; exit 3")
    waits = shell("waits", f"until [ -e {mark} ]; do sleep 0.1; done")
    options = ["--runner=slurm", "--slurm_gpus_per_job=0", "--slurm_cpus_per_gpu=1"]
    experiments = f"{good}, {bad}, {waits}"
    runner(*options, experiments=experiments, env=cluster.env)

    def status(name):
        return state_of(tmp_path, name)["status"]

    wait_until(lambda: status("00_good") == "finished" and status("00_bad") == "failed")
    wait_until(lambda: status("00_waits") == "running")
    good_log = tmp_path / "td" / "run" / "good" / "00_good" / "output.log"
    assert " with mine\n" in good_log.read_text()
    job = state_of(tmp_path, "00_waits")["slurm_job"]
    scancel = (tmp_path / "td" / "run" / "slurm" / "scancel.sh").read_text()
    assert job in scancel.split()

    def slurm_has_ended_it():
        known = cluster.run(["squeue", "--noheader", "--format=%A"]).stdout.split()
        return known == [job]

    wait_until(slurm_has_ended_it)
    done = runner(*options, env=cluster.env)
    assert "finished before: 00_good" in done.stderr
    assert "FAILED: 00_bad, exit code 3" in done.stderr
    assert f"in the queue as job {job}: 00_waits" in done.stderr
    assert "1 job(s) submitted" in done.stderr
    mark.touch()
    wait_until(lambda: status("00_bad") == status("00_waits") == "finished")
    assert runner("--results").stdout.count("finished") == 3


@pytest.mark.slow
def test_a_slurm_job_out_of_time_goes_on_in_another(cluster, runner, tmp_path):
    mark = tmp_path / "mark"
    script = f"echo here; test -e {mark} && exit 0; touch {mark}; sleep 99"
    template = tmp_path / "template.sh"
    template.write_text(f"#!/bin/bash\necho 'of $GPU GPUs'; cd {ROOT}\n")
    options = ["--runner=slurm", "--slurm_gpus_per_job=0", "--slurm_cpus_per_gpu=1"]
    options += ["--slurm_timeout=3s", f"--slurm_sbatch_template={template}"]
    runner(*options, experiments=shell("e", script), env=cluster.env)
    wait_until(lambda: state_of(tmp_path, "00_e")["status"] == "finished", timeout=120)
    log = (tmp_path / "td" / "run" / "e" / "00_e" / "output.log").read_text()
    assert log.count("of 0 GPUs\n") == log.count("\nhere\n") == 2
    template.write_text("#!/bin/bash\necho $NO_SUCH; $CMD\n")
    done = runner(*options, "--rerun", env=cluster.env, code=2)
    assert "'NO_SUCH' is none of $CMD" in done.stderr
