"""Where a run is bound: the words for known situations, and words for every other."""

import contextlib
import csv
import logging
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from impala_torch.endpoint.client import EndpointClient
from impala_torch.flags.config import Config
from impala_torch.learning.group import Group, HorovodGroup
from impala_torch.learning.training_state import TrainingState
from impala_torch.machine import link_speed
from impala_torch.report import progress
from impala_torch.report.bottleneck import Figures, diagnose
from tests.endpoint.test_endpoint import Learner


def figures(wait=0.0, allreduce=0.0, actors=0.0, **more):
    return Figures(wait, allreduce, actors, **more)


FULL = {"bytes_per_sec": 117e6, "link_bytes_per_sec": 118e6}


@pytest.mark.parametrize(
    ("learners", "begin", "words"),
    [
        ([figures(0.63, actors=0.05)], "actor-bound", ["63%", "more actors or environments"]),
        ([figures(0.02, actors=0.41)], "learner-bound", ["41%", "more actors will not help"]),
        ([figures(0.05, allreduce=0.38)], "allreduce 38% of an update", ["more learners do not"]),
        ([figures(0.1, actors=0.1)], "balanced", ["10%"]),
        ([figures(0.3, actors=0.4)], "learner-bound", ["40%"]),
        ([figures(0.63, connected=2, expected=3)], "actor-bound", ["1 of 3 are missing"]),
        ([figures(0.9, **FULL)], "endpoint link full", ["117 of 118 MB/s"]),
        ([figures(1.0, connected=0, expected=3)], "waiting: no actor", ["0 of 3"]),
        # Learners share their data: one without actors, or with few, is no case of its own.
        ([figures(0.4), figures(0.4, connected=0, expected=0)], "actor-bound", ["40%"]),
        ([figures(0.4), figures(0.4, connected=0, expected=2)], "actor-bound", ["2 of 3 are"]),
        ([figures(0.0, actors=0.6), figures(0.1)], "learner-bound", ["30%"]),
        ([figures(0.5, allreduce=0.5)], "actor-bound", ["50%"]),
        ([Figures(0.1, 0.0, None)], "balanced", []),
        ([figures(0.9, actors=0.95)], "both wait at learner 0", ["90%", "95%", "network"]),
        ([figures(0.95, actors=0.9)], "both wait at learner 0", ["95%", "90%"]),
        ([figures(0.0, actors=0.9), figures(0.9, actors=0.7)], "both wait at learner 1", ["70%"]),
        ([figures(0.9, actors=0.9, **FULL)], "endpoint link full", []),
        # Hungry learners and fed ones: no way is slow, actors are where they are not needed.
        ([figures(1.0), figures(1.0), figures(0.0, actors=0.9)], "actor-bound", ["67%"]),
    ],
)
def test_what_is_said(learners, begin, words):
    said = diagnose(learners)
    assert said.startswith(begin)
    for word in words:
        assert word in said


shares = st.floats(0, 1)
rates = st.none() | st.floats(0, 1e12)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(
        st.builds(
            Figures,
            shares,
            shares,
            st.none() | shares,
            rates,
            rates,
            st.integers(0, 500),
            st.integers(0, 500),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_there_is_a_line_for_everything(learners):
    said = diagnose(learners)
    assert said
    assert "\n" not in said


def test_the_loopbacks_speed_is_not_known():
    assert link_speed.link_bytes_per_sec("127.0.0.1") is None
    assert link_speed.link_bytes_per_sec("198.51.100.77") is None
    assert link_speed.link_bytes_per_sec("no.such.host.invalid") is None


def test_an_interfaces_speed_is_the_kernels(monkeypatch):
    assert link_speed._address("lo") == "127.0.0.1"
    assert link_speed._address("none0") == ""
    monkeypatch.setattr(link_speed.socket, "if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr(link_speed.pathlib.Path, "read_text", lambda path: "1000\n")
    assert link_speed.link_bytes_per_sec("127.0.0.1") == 125e6
    monkeypatch.setattr(link_speed.pathlib.Path, "read_text", lambda path: "-1\n")
    assert link_speed.link_bytes_per_sec("127.0.0.1") is None


def test_a_learner_says_where_it_is_bound(tmp_path, free_port, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_BOUND_SECS", 3600)
    caplog.set_level(logging.INFO, progress.__name__)
    learner = Learner(free_port(), actors=2)
    client = EndpointClient(learner.address, learner.spec, 1, 2, timeout_secs=10)
    agent = torch.nn.Linear(1, 1)
    state = TrainingState(agent, torch.optim.SGD(agent.parameters(), lr=0.1))
    group = Group()
    config = Config(level_name="Pong", learner_host=learner.address)
    parts = (config, group, state, learner.server, tmp_path, "sum")

    def bound():
        return learner.server.status()["bound"]

    def told():
        return [text for text in caplog.messages if text == bound()]

    with progress.Progress(*parts) as told_by:
        told_by.write(0.1)
        assert bound() == "waiting: no actor is connected (0 of 2)"
        assert not told()  # the line of progress comes more often
        with told_by.tally.waiting():
            client.connect()
            time.sleep(0.1)
        monkeypatch.setattr(progress, "_BOUND_SECS", 0)
        group.allreduce_secs += 1e-9
        told_by.write(0.1)
        assert bound().startswith("actor-bound: the learner waits for data ")
        assert bound().endswith("(1 of 2 are missing)")
        assert len(told()) == 1
        monkeypatch.setattr(progress, "_BOUND_SECS", 3600)
        group.allreduce_secs += 3600  # more than there was
        told_by.write(0.1)
        assert bound().startswith("allreduce 100% of an update")
        assert not told()
    client.close()
    learner.close()
    with open(tmp_path / "metrics.csv") as file:
        shares = [float(row["allreduce_share"]) for row in csv.DictReader(file)]
    assert shares == pytest.approx([0, 0, 1], abs=0.01)


def test_the_time_spent_averaging_gradients_adds_up(monkeypatch):
    now = 0.0

    def pass_by(secs):
        nonlocal now
        now += secs

    class Optimizer:
        def synchronize(self):
            pass_by(2)

        def skip_synchronize(self):
            return contextlib.nullcontext()

        def step(self):
            pass_by(100)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    group = HorovodGroup.__new__(HorovodGroup)  # of no MPI
    assert group.allreduce_secs == 0
    group.step(Optimizer(), [torch.zeros(1)], -1)
    group.step(Optimizer(), [torch.zeros(1)], -1)
    assert group.allreduce_secs == 4
    assert Group.allreduce_secs == 0
