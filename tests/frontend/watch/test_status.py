"""What --action=status prints, of real endpoints and of many made-up actors."""

import dataclasses
import json
import time

import pytest

from frontend.watch import status
from frontend.watch.status import SetStatus
from impala_torch.endpoint.client import EndpointClient, ask_status
from tests.endpoint.test_endpoint import Learner


def actor(task, **changes):
    return {
        "task": task,
        "host": f"host-{task}",
        "pid": 100 + task,
        "num_envs": 16,
        "steps": 1000,
        "steps_per_sec": 700.0,
        "waiting_share": 0.25,
        "lag": 2,
        "weights_age_secs": 1.2,
        "episodes": 12,
        "last_seen_secs": 0.4,
        "state": "acting",
        "relayed": False,
        **changes,
    }


def made(index=0, count=3, **changes):
    """The status of a worker set that trains."""
    content = {
        "host": f"learner-{index}",
        "frames": 1_234_567,
        "total_environment_frames": 10_000_000,
        "frames_per_sec": 12_345.6,
        "updates_per_sec": 4.25,
        "total_loss": 17.5,
        "policy_lag": 2.5,
        "queue_batches": 1,
        "batch_wait_share": 0.1,
        "episode_raw_return": -12.3,
        "games": 50,
        "games_in_mean": 50,
        "bound": "balanced: so it is",
        "dropped_unrolls": 0,
        "bad_messages": 0,
        "denied_connections": 0,
        "actors": [actor(task) for task in range(count)],
        **changes,
    }
    expected = tuple((task, f"10.0.{index}.{task}") for task in range(count))
    return SetStatus(index, f"10.0.{index}.250:8001", content, expected)


def test_what_learners_share():
    for given, received, words in (
        (12.4, 0.0, "gives 12/s"),
        (0.0, 3.0, "gets 3/s"),
        (12_345.0, 1.0, "gives 12.3K/s, gets 1/s"),
        (0.0, 0.0, "  -  "),
    ):
        text = status.table([made(given_per_sec=given, received_per_sec=received)])
        assert words in next(line for line in text.splitlines() if "learner-0" in line)


def test_what_cannot_be_written_is_a_problem():
    words = "no checkpoint can be written to /logs: No space left on device"
    assert f"learner 0: {words}" in status.problems([made(unwritten=[words])])


def test_a_run_in_a_table():
    silent = SetStatus(1, "10.0.1.250:8001", None, ((0, "10.0.1.0"),))
    text = status.table([made(), silent])
    lines = text.splitlines()
    learner = next(line for line in lines if "learner-0" in line)
    for word in ("10.0.0.250:8001", "1.2M", "12.3K", "4.2", "17.5", "2.5", "training"):
        assert word in learner
    assert "no answer" in next(line for line in lines if "10.0.1.250" in line)
    row = next(line for line in lines if "actor-0-2" in line)
    for word in ("host-2", "16", "700", "25%", "1 s", "acting"):
        assert word in row
    assert "not connected" in next(line for line in lines if "actor-1-0" in line)
    assert "frames 1.2M of 10.0M (12.3%)   12.3K frames/s   actors 3 of 4   return -12.3" in text
    assert "   left 0:11:50" in text
    assert "balanced: so it is" in text
    assert "warning: learner 1 at 10.0.1.250:8001 does not answer" in text


def test_a_real_endpoints_status(free_port):
    learner = Learner(free_port(), actors=2)
    client = EndpointClient(learner.address, learner.spec, 1, 2, timeout_secs=10)
    client.connect()
    sets = [
        SetStatus(0, learner.address, ask_status(learner.address), ((0, "here"), (1, "here"))),
    ]
    text = status.table(sets)
    assert "starting" in text
    assert "not connected" in next(line for line in text.splitlines() if "actor-0-0" in line)
    assert " acting" in next(line for line in text.splitlines() if "actor-0-1" in line)
    assert "1 actor(s) not connected: actor-0-0" in text
    learner.server.learner_status = {"frames": 1, "interval_secs": 0.1}
    time.sleep(0.5)
    (aged,) = [dataclasses.replace(sets[0], status=ask_status(learner.address))]
    assert aged.status["figures_age_secs"] >= 0.4
    assert aged.stalled_secs == 0  # somebody may be busy
    learner.server.standing = lambda: {"phase": "averaging gradients", "still_secs": 0.4}
    aged = dataclasses.replace(sets[0], status=ask_status(learner.address))
    assert "stalled for 0:00:00 (averaging gradients)" in status.table([aged])
    (read,) = json.loads(status.as_json([aged]))
    assert read["stalled_secs"] == aged.stalled_secs > 0
    assert read["address"] == learner.address
    assert [one["task"] for one in read["status"]["actors"]] == [1]
    client.close()
    learner.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bad_messages": 3, "last_bad": "header of 9 bytes"}, "3 bad message(s); the last: hea"),
        ({"denied_connections": 2}, "denied 2 connection(s) without the run's keys"),
        ({"dropped_unrolls": 4}, "dropped 4 old unroll(s)"),
        (
            {"actors": [actor(0), actor(1), actor(2, steps_per_sec=50.0)]},
            "actor-0-2: 5 times slower than the others",
        ),
        (
            {"actors": [actor(0, state="gone"), actor(1)]},
            "2 actor(s) not connected: actor-0-0, act",
        ),
    ],
)
def test_what_is_amiss_is_said(changes, words):
    (said,) = status.problems([made(**changes)])
    assert words in said


def test_nothing_amiss_is_nothing_said():
    assert status.problems([made(0), made(1)]) == []


def test_sets_may_be_some_of_a_runs():
    (said,) = status.problems([made(3, actors=[actor(0), actor(1)])])
    assert said == "1 actor(s) not connected: actor-3-2"


def test_what_other_hosts_say_commands_no_terminal():
    odd = "a\x1b[2J\n\u202eb"
    actors = [actor(0, host=odd), actor(1), actor(2)]
    text = status.table([made(host=odd, actors=actors, bad_messages=1, last_bad=odd)])
    assert "\x1b" not in text
    assert text.count("a?[2J??b") == 3


@pytest.mark.parametrize(
    ("secs", "text"),
    [(0.0, "0:00:00"), (3661.9, "1:01:01"), (90_061, "25:01:01"), (1e12, "> 100 days")],
)
def test_times_left(secs, text):
    assert status.duration(secs) == text


OLD = {"figures_age_secs": 1320.0, "interval_secs": 5.0, "phase": "averaging gradients"}
STILL = {**OLD, "phase_secs": 1316.0, "still_secs": 1305.0, "silent_learners": [1]}


def test_a_learner_that_stands_still_is_not_training():
    one = made(**STILL)
    assert one.stalled_secs == 1320
    assert status.learner_state(one) == "stalled for 0:22:00 (averaging gradients)"
    text = status.table([one])
    assert "   stalled for 0:22:00   actors 3 of 3" in text
    for word in ("12.3K", "balanced", "   left"):  # of 22 minutes ago
        assert word not in text
    (said,) = status.problems([one])
    assert said == (
        "learner 0 has stood still for 0:22:00, averaging gradients; it hears nothing of learner 1"
    )


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"figures_age_secs": 14.0, "interval_secs": 5.0, "still_secs": 4.0}, "training"),
        ({"figures_age_secs": 170.0, "interval_secs": 60.0}, "training"),  # updates are slow
        # Somebody writes a checkpoint.
        ({**OLD, "figures_age_secs": 50.0, "phase_secs": 45.0}, "averaging gradients for 0:00:45"),
        ({**OLD, "figures_age_secs": 61.0}, "stalled for 0:01:01 (averaging gradients)"),
        ({**OLD, "figures_age_secs": 16.0, "still_secs": 2.0}, "stalled for 0:00:16 (averag"),
    ],
)
def test_old_figures_are_old_by_the_learners_own_intervals(changes, state):
    assert status.learner_state(made(**changes)).startswith(state)


def test_learners_may_stand_still_before_there_are_figures():
    one = made(phase="agreeing with the others", phase_secs=40.0, still_secs=40.0)
    status_of = {name: value for name, value in one.status.items() if name != "frames"}
    one = dataclasses.replace(one, status=status_of)
    assert status.learner_state(one) == "stalled for 0:00:40 (agreeing with the others)"
    one = dataclasses.replace(one, status={**status_of, "phase_secs": 20.0, "still_secs": 20.0})
    assert status.learner_state(one) == "starting"


@pytest.mark.parametrize(
    ("changes", "length", "state"),
    [
        ({"last_seen_secs": 15.0}, 20, "silent for 15 s"),
        ({"last_seen_secs": 9.0}, 20, "acting"),
        ({"last_seen_secs": 15.0, "steps_per_sec": 64.0}, 20, "acting"),  # an unroll in 5 s
        ({"last_seen_secs": 16.0, "steps_per_sec": 64.0}, 20, "silent for 16 s"),
        ({"last_seen_secs": 30.0, "steps_per_sec": 0.0}, 20, "silent for 30 s"),
        ({"last_seen_secs": 30.0, "state": "waiting"}, 20, "waiting"),  # for credit: its turn
        ({"last_seen_secs": 70.0, "state": "gone"}, 20, "gone"),
    ],
)
def test_an_actor_that_has_fallen_silent_is_told_before_it_is_gone(changes, length, state):
    one = dataclasses.replace(made(actors=[actor(0, **changes)], count=1), unroll_length=length)
    assert status.actor_state(one.status["actors"][0], length) == state
    assert state in status.table([one])
    silent = ["1 actor(s) silent for longer than usual: actor-0-0"]
    assert status.problems([one]) == (silent if state.startswith("silent") else []) or (
        state == "gone"
    )


def test_states_of_a_learner():
    assert status.learner_state(made()) == "training"
    assert status.learner_state(made(updates_per_sec=0.0)) == "waiting for data"
    assert status.learner_state(made(batch_wait_share=0.95)) == "waiting for data"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (987.4, "987"), (9_999, "9,999"), (12_345, "12.3K"), (4.5e6, "4.5M")],
)
def test_short_numbers(value, text):
    assert status.short(value) == text
