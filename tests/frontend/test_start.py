"""What a start prepares: here, which key each host gets, and what that key is good for."""

import json

import pytest

from frontend import start
from frontend.flags import Options
from frontend.run_plan import ACTOR_KEY, LEARNER_KEY, plan, read
from frontend.watch.endpoints import OPERATOR_KEY
from frontend.workers import COLUMNS
from impala_torch.endpoint import keys as curve
from impala_torch.flags.config import Config


def plan_of(tmp_path, rows, **options):
    path = tmp_path / "workers.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    path.chmod(0o600)
    made = Options(workers_csv_path=str(path), **options)
    sets, _ = read(made)
    return plan(sets, Config(logdir=str(tmp_path / "run")), made, "run-1")


def loaded(tmp_path, name, text):
    curve.write(str(tmp_path / name), json.loads(text))
    return curve.load(str(tmp_path / name))


def test_a_hosts_key_is_good_for_the_tasks_of_its_rows_alone(tmp_path):
    rows = ["learner,198.51.100.1,8001,,,,", "learner,198.51.100.1,8002,,,,"]
    rows += [f"actor,198.51.100.{last},{9001 + n},,,," for n, last in enumerate((2, 3, 2, 1, 3))]
    run = plan_of(tmp_path, rows)
    contents = {spec.name: files for spec, files in start._make_keys(run).items()}
    held = {name: set(files) for name, files in contents.items()}
    assert held == {
        "localhost": {OPERATOR_KEY},
        "198.51.100.1": {LEARNER_KEY, ACTOR_KEY},
        "198.51.100.2": {ACTOR_KEY},
        "198.51.100.3": {ACTOR_KEY},
    }
    learner = loaded(tmp_path, "learner", contents["198.51.100.1"][LEARNER_KEY])
    every = [(number, task) for number in range(3) for task in range(4)]
    # Dealt round-robin: the first, third and fifth actor are the first set's, in this order.
    tasks = {
        "198.51.100.1": [(1, 1)],
        "198.51.100.2": [(0, 0), (0, 1)],
        "198.51.100.3": [(0, 2), (1, 0)],
        "frontend": [],
        "learner": [],
    }
    for name, expected in tasks.items():
        assert [one for one in every if learner.may_act(name, *one)] == expected, name
    for name in ("198.51.100.2", "198.51.100.3"):
        own = loaded(tmp_path, name, contents[name][ACTOR_KEY])
        assert learner.accepted[own.actor_public] == name
        assert own.server_secret is None


@pytest.mark.parametrize("ip", ["localhost", "127.0.0.1"])
def test_a_run_of_this_machine_alone_goes_over_a_path_of_its_users(tmp_path, monkeypatch, ip):
    monkeypatch.setenv("HOME", "/home/me")
    run = plan_of(tmp_path, [f"learner,{ip},8001,,,,", f"actor,{ip},9001,,,,"], relays="always")
    assert start._make_keys(run) == {}
    address = "ipc:///home/me/.impala_torch/run-1/set-0.ipc"
    assert f"--learner_host={address}" in run.learners
    relay, actor = run.here.windows
    assert f"0={address}" in relay.argv
    assert f"--learner_host={address}" in actor.argv
    assert run.sets[0].learner.address == f"{ip}:8001"  # as the user knows it


@pytest.mark.parametrize("ip", ["localhost", "127.0.0.1"])
def test_where_that_path_is_too_long_there_are_keys(tmp_path, monkeypatch, ip):
    monkeypatch.setenv("HOME", "/home/" + "long" * 20)
    run = plan_of(tmp_path, [f"learner,{ip},8001,,,,", f"actor,{ip},9001,,,,"])
    assert f"--learner_host={ip}:8001" in run.learners
    ((spec, files),) = start._make_keys(run).items()
    assert (spec.name, set(files)) == ("localhost", {LEARNER_KEY, ACTOR_KEY, OPERATOR_KEY})
    learner = loaded(tmp_path, "learner", files[LEARNER_KEY])
    assert learner.may_act("localhost", 0, 0)
    assert any(word.endswith(f"/run-1/{LEARNER_KEY}") for word in run.learners)
    (window,) = run.here.windows
    assert any(word.endswith(f"/run-1/{ACTOR_KEY}") for word in window.argv)
