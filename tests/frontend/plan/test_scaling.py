"""The model of a run's speed: its properties, the original's published table, and the planner."""

import dataclasses
import itertools
import json
import math
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.plan import __main__ as plan
from frontend.plan import costs as costs_lib
from frontend.plan import scaling
from frontend.plan.scaling import ACTORS, LEARNER, Costs, Network
from impala_torch.agents import make_agent
from impala_torch.environments import environment_spec
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning.group import Group
from impala_torch.measure import measure
from sandbox.benchmarks import original
from tests.conftest import ROOT

FREE = Network(link_bytes_per_sec=math.inf, hop_secs=0.0)
COSTS = Costs(
    level_name="PongNoFrameskip-v4",
    agent_name="ShallowConvNetAgent",
    batch_size=32,
    unroll_length=20,
    num_envs=16,
    sampler_steps_per_sec=3900.0,
    actor_steps_per_sec=2000.0,
    actors_per_host=2,
    update_secs=0.08,
    update_fixed_secs=0.008,
    update_jitter=0.05,
    overlap_secs=0.0,
    adding_beside=0.0,
    averagings_per_update=1.0,
    gradient_bytes=2_711_968,
    weights_bytes=2_711_968,
    bytes_per_step=92.0,
    endpoint_steps_per_sec=300_000.0,
    allreduce_fixed_secs=0.001,
    allreduce_bytes_per_sec=1.7e9,
)


def positive(low: float, high: float):
    return st.floats(low, high, allow_nan=False)


def possible(averagings: float, fixed_share: float, overlap_share: float, **fields) -> Costs:
    """Costs whose parts of an update are none larger than it."""
    backward = fields["update_secs"] / max(1, averagings)  # of one of the passes over a batch
    return Costs(
        averagings_per_update=averagings,
        update_fixed_secs=fixed_share * fields["update_secs"],
        overlap_secs=overlap_share * backward,
        **fields,
    )


any_costs = st.builds(
    possible,
    level_name=st.just("level"),
    agent_name=st.just("agent"),
    batch_size=st.integers(1, 512),
    unroll_length=st.integers(1, 200),
    num_envs=st.integers(1, 64),
    sampler_steps_per_sec=positive(1, 1e5),
    actor_steps_per_sec=positive(1, 1e5),
    actors_per_host=st.integers(1, 64),
    update_secs=positive(1e-4, 10),
    update_jitter=positive(0, 0.5),
    fixed_share=positive(0, 1),
    overlap_share=positive(0, 1),
    adding_beside=positive(0, 1),
    # Batches used again, or as many of them to a step.
    averagings=st.integers(1, 4).map(float) | st.integers(1, 8).map(lambda passes: 1 / passes),
    gradient_bytes=st.integers(1, 10**9),
    weights_bytes=st.integers(1, 10**9),
    bytes_per_step=positive(1, 1e5),
    endpoint_steps_per_sec=positive(1, 1e7),
    allreduce_fixed_secs=positive(1e-6, 0.01),
    allreduce_bytes_per_sec=positive(1e6, 1e11),
)
any_network = st.builds(
    Network,
    link_bytes_per_sec=positive(1e5, 1e11),
    hop_secs=positive(0, 1e-2),
    shared_steps_per_sec=st.just(math.inf) | positive(1, 1e7),
)
learner_counts = st.integers(1, 64)
actor_counts = st.integers(1, 500)


# --- properties ---------------------------------------------------------------------------------


@given(any_costs, any_network, learner_counts, actor_counts)
def test_a_run_is_never_faster_than_any_of_its_parts(costs, network, learners, actors):
    made = scaling.predict(costs, network, learners, actors)
    assert 0 < made.steps_per_sec <= learners * actors * costs.actor_steps_per_sec
    assert made.steps_per_sec <= learners * costs.steps_per_update / costs.update_secs
    assert made.steps_per_sec <= learners * costs.endpoint_steps_per_sec
    assert made.steps_per_sec <= network.shared_steps_per_sec
    least = learners * network.link_bytes_per_sec / costs.bytes_per_step
    assert made.steps_per_sec <= least * (1 + 1e-9)
    # Nor, with five parts, much slower than the slowest.
    slowest = min(made.limits.values())
    assert made.steps_per_sec >= slowest * 5 ** (-1 / scaling.SHARPNESS) * (1 - 1e-9)


@given(any_costs, any_network, learner_counts, actor_counts)
def test_learners_together_are_never_faster_than_as_many_alone(costs, network, learners, actors):
    one = scaling.predict(costs, network, 1, actors).steps_per_sec
    assert scaling.predict(costs, network, learners, actors).steps_per_sec <= learners * one * (
        1 + 1e-9
    )


@given(any_costs, learner_counts, actor_counts)
def test_more_actors_are_never_slower_where_links_carry_all(costs, learners, actors):
    fewer = scaling.predict(costs, FREE, learners, actors).steps_per_sec
    more = scaling.predict(costs, FREE, learners, actors + 1).steps_per_sec
    assert more >= fewer
    alone = min(costs.endpoint_steps_per_sec, costs.steps_per_update / costs.update_secs)
    if learners == 1 and (actors + 1) * costs.actor_steps_per_sec < alone / 2:
        assert more > fewer


@given(any_costs, any_network, st.integers(2, 64), actor_counts)
def test_a_faster_link_is_never_slower(costs, network, learners, actors):
    faster = dataclasses.replace(network, link_bytes_per_sec=10 * network.link_bytes_per_sec)
    before = scaling.predict(costs, network, learners, actors)
    after = scaling.predict(costs, faster, learners, actors)
    assert after.steps_per_sec >= before.steps_per_sec
    assert after.allreduce_secs <= before.allreduce_secs


@given(any_costs, any_network)
def test_one_learner_averages_nothing_and_two_do(costs, network):
    assert scaling.allreduce_secs(costs, network, 1) == 0
    assert scaling.predict(costs, network, 1, 3).allreduce_share == 0
    fixed = costs.averagings_per_update * costs.allreduce_fixed_secs
    assert scaling.allreduce_secs(costs, network, 2) >= fixed > 0


@given(any_costs, any_network)
def test_a_learner_feeds_on_just_enough_actors(costs, network):
    fed = scaling.actors_fed(costs, network)

    def enough(actors: int) -> bool:
        limits = dict(scaling.predict(costs, network, 1, actors).limits)
        return limits.pop(ACTORS) >= min(limits.values())

    assert enough(fed) or fed == scaling._MOST_ACTORS
    assert fed == 1 or not enough(fed - 1)


@given(any_costs, any_network, actor_counts)
@settings(max_examples=30)
def test_learners_pay_up_to_where_the_next_one_adds_little(costs, network, actors):
    last = scaling.learners_that_pay(costs, network, actors, most=32)
    rates = [scaling.predict(costs, network, n, actors).steps_per_sec for n in range(1, 33)]
    gains = [(two - one) / rates[0] for one, two in itertools.pairwise(rates)]
    assert all(gain < scaling.WORTH for gain in gains[last - 1 :])
    assert last == 1 or gains[last - 2] >= scaling.WORTH


def split(costs: Costs, learners: int) -> Costs:
    shared = scaling.split(costs, learners)
    assert shared is not None
    return shared


@given(any_costs, any_network, actor_counts)
def test_of_one_learner_both_predictions_are_the_same(costs, network, actors):
    alone = scaling.predict(costs, network, 1, actors)
    shared = scaling.predict(split(costs, 1), network, 1, actors)
    assert shared.costs.batch_size == costs.batch_size
    assert shared.steps_per_sec == pytest.approx(alone.steps_per_sec)
    assert shared.limits == pytest.approx(alone.limits)


@given(any_costs, learner_counts)
def test_learners_that_share_a_step_make_its_total_and_no_other(costs, learners):
    shared = scaling.split(costs, learners)
    assert (shared is None) == (costs.step_batch % learners > 0)
    if shared is not None:
        assert learners * shared.step_batch == costs.step_batch
        assert 1 <= shared.batch_size <= costs.batch_size  # what a learner's memory holds
        # As many averagings a step, whatever the number of batches that it is of.
        assert shared.averagings_per_update * shared.batches_per_step == pytest.approx(
            costs.averagings_per_update * costs.batches_per_step
        )
        assert shared.update_fixed_secs <= shared.update_secs * (1 + 1e-9)
        assert shared.overlap_secs <= costs.overlap_secs * (1 + 1e-9)


@given(any_costs, any_network, st.data(), actor_counts)
def test_a_shared_batch_is_never_faster_than_one_each(costs, network, data, actors):
    dividing = [n for n in range(1, 65) if costs.step_batch % n == 0]
    learners = data.draw(st.sampled_from(dividing))
    each = scaling.predict(costs, network, learners, actors)
    shared = scaling.predict(split(costs, learners), network, learners, actors)
    assert shared.steps_per_sec <= each.steps_per_sec * (1 + 1e-9)
    assert shared.limits[LEARNER] <= each.limits[LEARNER] * (1 + 1e-9)


@given(any_costs, any_network, st.data(), positive(0, 1))
def test_the_more_of_an_update_is_fixed_the_slower_a_shared_batch(costs, network, data, share):
    dividing = [n for n in range(1, 65) if costs.step_batch % n == 0]
    learners = data.draw(st.sampled_from(dividing))
    less = dataclasses.replace(costs, update_fixed_secs=share * costs.update_fixed_secs)
    rates = [
        scaling.predict(split(one, learners), network, learners, 9).limits[LEARNER]
        for one in (less, costs)
    ]
    assert rates[1] <= rates[0] * (1 + 1e-9)
    # With a batch each it does not matter.
    assert scaling.predict(less, network, learners, 9).steps_per_sec == pytest.approx(
        scaling.predict(costs, network, learners, 9).steps_per_sec
    )


@given(any_costs, any_network, actor_counts)
@settings(max_examples=30)
def test_shared_batches_pay_up_to_where_the_next_divisor_adds_little(costs, network, actors):
    last = scaling.learners_that_pay(costs, network, actors, most=32, splitting=True)
    predicted = [*scaling.rates(costs, network, actors, 32, splitting=True)]
    worth = scaling.WORTH * predicted[0].steps_per_sec
    pairs = list(itertools.pairwise(predicted))
    paying = {
        two.learners: (two.steps_per_sec - one.steps_per_sec) / (two.learners - one.learners)
        for one, two in pairs
    }
    assert costs.step_batch % last == 0
    assert all(gain < worth for n, gain in paying.items() if n > last)
    assert last == 1 or paying[last] >= worth


# --- hand calculations --------------------------------------------------------------------------


def test_the_ring_by_hand():
    # 4 learners, 8 MB at 1 GB/s, 1 ms a hop: 3 turns that add up and 3 that hand round, of 2 MB.
    assert scaling.ring_secs(4, 8e6, 1e9, 1e-3) == pytest.approx(6 * (2e-3 + 1e-3))
    assert scaling.ring_secs(2, 8e6, 1e9, 0.0) == pytest.approx(8e-3)


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_the_ring_sends_as_often_and_as_much_as_a_ring_that_runs(ranks):
    """A real ring over lists: chunk by chunk to the next rank, until all have the sum."""
    chunks = [[float(10 * rank + chunk) for chunk in range(ranks)] for rank in range(ranks)]
    expected = [sum(own[chunk] for own in chunks) for chunk in range(ranks)]
    turns, sent = 0, 0.0
    for adding in (True, False):
        for turn in range(ranks - 1):
            begin = 0 if adding else 1
            index = [(rank + begin - turn) % ranks for rank in range(ranks)]
            flying = [chunks[rank][index[rank]] for rank in range(ranks)]
            for rank in range(ranks):
                source = (rank - 1) % ranks
                chunk = index[source]
                own = chunks[rank][chunk] if adding else 0.0
                chunks[rank][chunk] = own + flying[source]
            turns += 1
            sent += 1 / ranks
    assert all(own == expected for own in chunks)
    assert scaling.ring_secs(ranks, 1.0, 1.0, 0.0) == pytest.approx(sent)
    assert scaling.ring_secs(ranks, 0.0, 1.0, 1.0) == pytest.approx(turns)


def test_two_learners_by_hand():
    # 2.711968 MB there and back in halves: once at 125 MB/s, once at 1.7 GB/s, 2 hops, 1 ms.
    network = Network(link_bytes_per_sec=125e6, hop_secs=50e-6)
    averaging = 1e-3 + 2.711968 / 125 + 2.711968 / 1700 + 2 * 50e-6
    made = scaling.predict(COSTS, network, 2, 40)
    assert made.allreduce_secs == pytest.approx(averaging)
    update = 0.08 * (1 + 0.05 * scaling.slowest(2))
    assert made.step_secs == pytest.approx(update + averaging)
    assert made.limits[LEARNER] == pytest.approx(2 * 640 / (update + averaging))
    assert made.bound == LEARNER


def test_the_link_carries_unrolls_one_way_and_weights_the_other():
    # A relay on each of 5 hosts asks less often than 10 actors with an unroll of 320 steps each:
    # 5 pulls an update of 640 steps against 2 (an update takes 2 unrolls).
    network = Network(link_bytes_per_sec=1e6)
    weights = 2_711_968 / 320
    made = scaling.predict(COSTS, network, 1, 10)
    assert made.limits[scaling.LINK] == pytest.approx(1e6 / weights)
    assert made.bound == scaling.LINK
    alone = dataclasses.replace(COSTS, actors_per_host=10)
    assert scaling.predict(alone, network, 1, 10).limits[scaling.LINK] == pytest.approx(
        1e6 / (2_711_968 / 640)
    )


def test_backward_hides_what_it_can_of_averaging():
    network = Network(link_bytes_per_sec=125e6, hop_secs=0.0)
    hidden = dataclasses.replace(COSTS, overlap_secs=0.010)
    plain = scaling.allreduce_secs(COSTS, network, 4)
    assert scaling.allreduce_secs(hidden, network, 4) == pytest.approx(plain - 0.010)
    # The link's part can be hidden, a core's only where it has nothing else to do.
    on_cpu = dataclasses.replace(COSTS, overlap_secs=1.0)
    adding = scaling.ring_secs(4, COSTS.gradient_bytes, COSTS.allreduce_bytes_per_sec, 0.0)
    averaging = scaling.allreduce_secs(on_cpu, network, 4)
    assert averaging == pytest.approx(COSTS.allreduce_fixed_secs + adding)
    on_gpu = dataclasses.replace(on_cpu, adding_beside=1.0)
    assert scaling.allreduce_secs(on_gpu, network, 4) == pytest.approx(COSTS.allreduce_fixed_secs)


@pytest.mark.parametrize("agent_name", ["MLPAgent", "ResNetAgent"])
def test_averaging_overlaps_with_what_is_left_of_backward(agent_name):
    level = "CartPole-v1" if agent_name == "MLPAgent" else "PongNoFrameskip-v4"
    config = Config(
        level_name=level, agent_name=agent_name, batch_size=2, unroll_length=4, num_envs=2
    )
    with measure.ready_learner(config, Group(), measure.record(config)) as (learner, update):
        update()
        started = time.perf_counter()
        assert 0 < measure.overlap_secs(learner) < time.perf_counter() - started
        update()  # nothing is left behind that an update trips over


def test_four_learners_of_a_quarter_by_hand():
    # 8 ms are fixed, 72 ms are of 32 unrolls: 8 unrolls take 8 + 18 ms, and are averaged as often.
    costs = dataclasses.replace(COSTS, overlap_secs=0.016)
    shared = split(costs, 4)
    assert (shared.batch_size, shared.averagings_per_update) == (8, 1)
    assert shared.update_secs == pytest.approx(0.026)
    assert shared.overlap_secs == pytest.approx(0.016 * 26 / 80)
    network = Network(link_bytes_per_sec=125e6)
    made = scaling.predict(shared, network, 4, 40)
    averaging = scaling.allreduce_secs(shared, network, 4)
    update = 0.026 * (1 + 0.05 * scaling.slowest(4))
    assert made.limits[LEARNER] == pytest.approx(4 * 8 * 20 / (update + averaging))
    assert scaling.split(COSTS, 3) is None
    assert scaling.split(COSTS, 64) is None


@pytest.mark.parametrize(
    ("learners", "batch", "passes", "averagings"),
    [(1, 8, 4, 1 / 4), (2, 8, 2, 1 / 2), (4, 8, 1, 1), (8, 4, 1, 1), (32, 1, 1, 1)],
)
def test_a_virtual_batch_is_shared_before_a_batch_gets_smaller(learners, batch, passes, averagings):
    # --batch_size=8 --virtual_batch_size=32
    costs = dataclasses.replace(COSTS, batch_size=8, averagings_per_update=0.25)
    shared = split(costs, learners)
    assert (shared.batch_size, shared.batches_per_step) == (batch, passes)
    assert shared.averagings_per_update == averagings


def test_a_batch_that_is_used_again_is_averaged_as_often_when_it_is_shared():
    reused = dataclasses.replace(COSTS, averagings_per_update=3.0)
    assert reused.step_batch == 32
    assert split(reused, 2).averagings_per_update == 3


def test_parts_of_a_virtual_batch_are_of_one_size():
    # 9 unrolls, 4 at most at once: three batches of 3, since --virtual_batch_size is a multiple.
    costs = dataclasses.replace(COSTS, batch_size=3, averagings_per_update=1 / 6)
    assert (split(costs, 2).batch_size, split(costs, 2).batches_per_step) == (3, 3)
    shared = split(dataclasses.replace(COSTS, batch_size=4, averagings_per_update=1 / 3), 2)
    assert (shared.batch_size, shared.batches_per_step) == (3, 2)


@pytest.mark.parametrize(
    ("batch", "secs", "part", "part_secs", "fixed"),
    [
        (32, 0.080, 8, 0.026, 0.008),
        (32, 0.080, 8, 0.010, 0.0),  # faster than in proportion: nothing is fixed
        (32, 0.080, 8, 0.090, 0.080),  # slower than the whole: all is
        (1, 0.080, 1, 0.080, 0.080),
    ],
)
def test_what_is_fixed_is_where_a_line_through_two_batches_begins(
    batch, secs, part, part_secs, fixed
):
    assert measure.fixed_secs(batch, secs, part, part_secs) == pytest.approx(fixed)


@pytest.mark.parametrize(
    ("flags", "averagings"),
    [({"batch_size": 1}, 1), ({"batch_size": 4, "virtual_batch_size": 8}, 0.5)],
)
def test_a_learner_is_measured_with_two_batches(flags, averagings):
    config = Config(
        level_name="CartPole-v1",
        agent_name="MLPAgent",
        unroll_length=4,
        num_envs=3,
        sample_secs=0.1,
        **flags,
    )
    found = measure._learner(config)
    assert 0 <= found["update_fixed_secs"] <= found["update_secs"]
    assert found["averagings_per_update"] == averagings
    if config.batch_size == 1:  # there is none smaller
        assert found["update_fixed_secs"] == found["update_secs"]


def test_batches_that_share_a_step_share_its_averaging():
    shared = dataclasses.replace(COSTS, averagings_per_update=0.25)
    network = Network(link_bytes_per_sec=125e6)
    whole = scaling.allreduce_secs(COSTS, network, 3)
    assert scaling.allreduce_secs(shared, network, 3) == pytest.approx(whole / 4)


# Expected largest of n standard normal values (Harter 1961).
@pytest.mark.parametrize(("n", "expected"), [(1, 0), (2, 0.5642), (4, 1.0294), (8, 1.4236)])
def test_the_slowest_of_several(n, expected):
    assert scaling.slowest(n) == pytest.approx(expected, rel=0.05)


def test_a_ring_is_read_off_what_the_allreduce_printed():
    secs = 0.002 + scaling.ring_secs(2, 4e6, 1.6e9, 0.0)
    printed = {"ranks": 2, "bytes": 4e6, "secs": secs, "small_secs": 0.002}
    assert costs_lib.ring_part(printed) == (0.002, pytest.approx(1.6e9))


# --- the original's table -----------------------------------------------------------------------


def test_the_originals_published_table_is_explained():
    parts, network = original.fit()
    column = {
        actors: original.rate(parts, network, 1, actors) / told - 1
        for actors, told in original.BY_ACTORS.items()
    }
    rows = {
        n: original.rate(parts, network, n, original.ACTORS) / told - 1
        for n, told in original.BY_LEARNERS.items()
    }
    assert max(map(abs, column.values())) < 0.03
    assert max(map(abs, rows.values())) < 0.02  # 4 to 8 learners are predictions


def test_without_a_shared_ceiling_the_table_is_not_explained():
    parts, network = original.fit()
    unshared = Network(network.link_bytes_per_sec, network.hop_secs)
    assert original.rate(parts, unshared, 8, original.ACTORS) > 1.8 * original.BY_LEARNERS[8]


# --- the planner --------------------------------------------------------------------------------


@pytest.fixture
def costs_file(tmp_path):
    path = tmp_path / "costs.json"
    costs_lib.Measured(COSTS, 1.25e9, "8 cores, some", "2026-11-21").save(str(path))
    return path


def cells(stdout: str) -> dict[int, list[str]]:
    """The rows of the predictions, by learners."""
    rows = [line.split() for line in stdout.split("predicted")[1].splitlines()]
    return {int(row[0]): row for row in rows if row and row[0].isdecimal()}


def test_a_plan_from_costs_measured_elsewhere(run_python, costs_file):
    done = run_python("-m", "frontend.plan", f"--costs={costs_file}", "--learners=16")
    assert done.returncode == 0, done.stderr
    assert "8 cores, some, 2026-11-21" in done.stdout
    # That machine's own link.
    assert "with links of 10,000 Mbit/s and 4 actor(s) each" in done.stdout
    assert "A learner can feed on 4 actor(s) of 16 environments: 2 host(s)" in done.stdout
    assert "\nLearners pay up to 16 at least" in done.stdout
    assert "\nAt 32 in all, learners pay up to 8 (" in done.stdout
    rows = cells(done.stdout)
    assert list(rows) == [1, 2, 3, 4, 6, 8, 12, 16]
    for count, row in rows.items():
        made = scaling.predict(COSTS, Network(1.25e9), count, 4)
        assert row[1:3] == [str(32 * count), f"{made.steps_per_sec:,.0f}"]
        shared = scaling.split(COSTS, count)
        if shared is None:
            assert row[-4:] == ["-"] * 4
        else:
            made = scaling.predict(shared, Network(1.25e9), count, 4)
            assert row[6:8] == [str(32 // count), f"{made.steps_per_sec:,.0f}"]
    assert rows[1][1:6] == rows[1][6:]


def test_it_is_said_which_of_both_the_user_gets_and_how_to_get_the_other():
    own, other = plan.batches(COSTS, 48)
    assert "added have --batch_size=32 each" in own
    assert "n of them step with n x 32 unrolls together, and n times as seldom" in own
    assert "give --batch_size = 32 / n: --batch_size=1 with 32 learners" in other
    virtual = dataclasses.replace(COSTS, batch_size=8, averagings_per_update=0.25)
    own, other = plan.batches(virtual, 3)
    assert "added have --virtual_batch_size=32 each" in own
    assert "--batch_size=8 --virtual_batch_size=16 with 2 learners" in other
    _, other = plan.batches(virtual, 4)
    assert "32 / n: --batch_size=8 --virtual_batch_size=8 with 4 learners" in other
    none = dataclasses.replace(COSTS, batch_size=7)
    assert plan.batches(none, 6)[1] == "No other number of learners up to 6 divides a total of 7."
    assert len(plan.batches(none, 7)) == 2


def test_a_shared_batch_stops_paying_where_its_fixed_part_is_what_is_left():
    fixed = dataclasses.replace(COSTS, update_fixed_secs=0.05)
    words = plan.pays(fixed, Network(1.25e9), actors=40, most=64, splitting=True)
    assert words.startswith("At 32 in all, learners pay up to 2 (")
    assert "each of 4 adds less than a tenth of what the first one makes, because " in words
    assert words.endswith("of an update is the same for any batch.")
    assert "pay up to 64 at least" in plan.pays(fixed, Network(1.25e9), actors=40, most=64)


def test_a_shared_batch_without_a_fixed_part_pays_to_the_last_divisor():
    free = dataclasses.replace(COSTS, update_fixed_secs=0.0, allreduce_fixed_secs=1e-9)
    words = plan.pays(free, FREE, actors=999, most=64, splitting=True)
    assert words.startswith("At 32 in all, learners pay up to 32, the most that divides 32: ")


def test_a_slow_link_is_said_to_be_the_limit(costs_file, capsys):
    assert plan.main([f"--costs={costs_file}", "--bandwidth_mbit=20"]) == 0
    assert "More would wait, for its link." in capsys.readouterr().out


def test_where_averaging_takes_too_long_more_learners_are_advised_against():
    large = dataclasses.replace(COSTS, gradient_bytes=10**9)
    words = plan.pays(large, Network(125e6), actors=3, most=8)
    assert words.startswith("Learners pay up to 1 ")
    assert "because averaging is 99% of an update" in words


def test_what_all_learners_share_is_named():
    shared = Network(1.25e9, shared_steps_per_sec=21_700)
    words = plan.pays(COSTS, shared, actors=45, most=64)
    assert words.startswith("Learners pay up to 4 (")
    assert "because the limit is what all learners share." in words


def test_too_few_actors_are_said_to_be_so(costs_file, capsys):
    assert plan.main([f"--costs={costs_file}", "--actors_per_learner=1"]) == 0
    assert "; with 1 it is the learner that waits." in capsys.readouterr().out


def test_costs_are_read_as_they_were_written(costs_file):
    read = costs_lib.load(str(costs_file))
    assert read == costs_lib.Measured(COSTS, 1.25e9, "8 cores, some", "2026-11-21")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"update_secs": 0}, "'update_secs' must be a number of more than 0, not 0"),
        ({"update_secs": "fast"}, "'update_secs' must be a number"),
        ({"update_secs": True}, "'update_secs' must be a number"),
        ({"bytes_per_step": math.nan}, "'bytes_per_step' must be a number"),
        ({"batch_size": 2.5}, "'batch_size' must be a whole number"),
        ({"update_jitter": -1}, "'update_jitter' must be a number of 0 or more"),
        ({"update_fixed_secs": -1}, "'update_fixed_secs' must be a number of 0 or more"),
        ({"update_fixed_secs": 1}, "'update_fixed_secs' is a part of 'update_secs'"),
        ({"adding_beside": 1.5}, "'adding_beside' is a share: it must not be more than 1"),
        ({"link_bytes_per_sec": -1}, "'link_bytes_per_sec' must be a number"),
        ({"gpu": 1}, "unknown field 'gpu'"),
        ({"num_envs": None}, "'num_envs' must be a whole number"),
    ],
)
def test_costs_that_cannot_be_are_named(costs_file, changes, words):
    values = json.loads(costs_file.read_text())
    costs_file.write_text(json.dumps(values | changes))
    with pytest.raises(UserError, match="--costs=") as caught:
        costs_lib.load(str(costs_file))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["actors_per_host", "update_fixed_secs"])
def test_a_field_that_is_missing_is_named(costs_file, name):
    values = json.loads(costs_file.read_text())
    del values[name]
    costs_file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"lacks the field '{name}'"):
        costs_lib.load(str(costs_file))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bandwidth_mbit=0"], "--bandwidth_mbit must be more than 0, not 0"),
        (["--bandwidth_mbit=nan"], "--bandwidth_mbit must be more than 0"),
        (["--learners=0"], "--learners must be 1 to 4096, not 0"),
        (["--actors_per_learner=-1"], "--actors_per_learner must not be negative"),
        (["--batch_size=0"], "--batch_size must be more than 0"),
        (["--batchsize=1"], "Unknown command line flag 'batchsize'"),
        (["Pong"], "'Pong' is not a flag"),
        (["--costs=/nowhere/costs.json"], "--costs=/nowhere/costs.json cannot be read"),
        (["--costs=README.md"], "--costs=README.md is not JSON"),
        (["--costs=COSTS", "--batch_size=4"], "measured with flags of its own: leave out --batch"),
        (["--costs=COSTS", "--save_costs=/nowhere/x"], "--save_costs=/nowhere/x cannot be written"),
    ],
)
def test_bad_input_is_told_in_a_sentence(flags, words, costs_file, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert plan.main([flag.replace("COSTS", str(costs_file)) for flag in flags]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert not told.out


def test_where_nothing_can_be_averaged_the_assumption_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    fixed, adding, note = costs_lib._allreduce()
    assert "mpirun is not installed here: its part of averaging is taken as" in note
    assert fixed > 0
    assert adding > 0


def test_the_simulation_prints_its_tables(run_python, costs_file):
    done = run_python("sandbox/benchmarks/scale.py", "--simulate", f"--costs={costs_file}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    network = Network(1e9 / 8)
    fed = scaling.actors_fed(COSTS, network)
    made = scaling.predict(COSTS, network, 64, fed).steps_per_sec
    assert any(line.startswith(f"| 64 | {made:,.0f} (") for line in lines)
    assert f"| {' | '.join(original.table()[-1])} |" in lines


def test_the_planner_loads_no_torch(run_python):
    code = "import sys, frontend.plan; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert run_python("-c", code).returncode == 0


@pytest.mark.slow
def test_a_plan_of_this_machine(run_python, tmp_path):
    level = ["--level_name=CartPole-v1", "--agent_name=MLPAgent", "--unroll_length=10"]
    mine = ["--quick", "--bandwidth_mbit=1000", f"--save_costs={tmp_path}/costs.json"]
    argv = ["-m", "frontend.plan", *level, "--batch_size=4", "--num_envs=8"]
    done = run_python(*argv, *mine, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal
    assert "is taken as" not in done.stdout  # mpirun and Horovod are here
    costs = costs_lib.load(str(tmp_path / "costs.json")).costs
    agent = make_agent("MLPAgent", environment_spec("CartPole-v1"))
    size = 4 * sum(parameter.numel() for parameter in agent.parameters())
    assert (costs.gradient_bytes, costs.weights_bytes) == (size, size)
    assert (costs.batch_size, costs.unroll_length, costs.num_envs) == (4, 10, 8)
    assert costs.actors_per_host == os.cpu_count()
    assert 4 * 4 < costs.bytes_per_step < 200
    network = Network(1e9 / 8)
    fed = scaling.actors_fed(costs, network)
    made = scaling.predict(costs, network, 64, fed).steps_per_sec
    assert f"and {fed} actor(s) each" in done.stdout
    assert cells(done.stdout)[64][1:3] == ["256", f"{made:,.0f}"]
    assert 0 <= costs.update_fixed_secs <= costs.update_secs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--agent_name=Nobody", "--agent_name=Nobody is not in the zoo"),
        ("--level_name=PoongNoFrameskip-v4", "no Atari game"),
    ],
)
def test_what_only_the_measuring_process_knows_is_told_too(run_python, flag, words):
    done = run_python("-m", "frontend.plan", "--quick", flag)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
