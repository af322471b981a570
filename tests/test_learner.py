"""What a learner does with a batch: steps, virtual batches, reuse."""

import time

import numpy as np
import pytest
import torch

from impala_torch.agents import weights
from impala_torch.flags.checks import check
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learner import Learner, Round
from impala_torch.learning import checkpoint
from impala_torch.learning.feed import make_batch
from impala_torch.learning.finite import NotFinite
from impala_torch.learning.group import Group
from impala_torch.report.progress import Progress
from impala_torch.report.tally import Tally
from impala_torch.structures import unroll_layout
from tests.conftest import fill as full

T = 5


@pytest.fixture
def learner_of(tmp_path, free_port):
    """Makes learners of CartPole, with flags."""
    made = []

    def make(**changes) -> tuple[Learner, Tally]:
        logdir = tmp_path / str(len(made))
        logdir.mkdir()
        config = Config(
            level_name="CartPole-v1",
            agent_name="MLPAgent",
            unroll_length=T,
            learner_host=f"127.0.0.1:{free_port()}",
            actor_hosts="",
            epsilon=0.01,
            logdir=str(logdir),
            total_environment_frames=1000,
            **{"gradients_clipping": 5.0, **changes},
        )
        check(config)
        learner = Learner(config, Group(), logdir)
        tally = Tally(learner.spec.environment.num_actions)
        made.append(learner)
        return learner, tally

    yield make
    for learner in made:
        learner.close()


def fill(learner: Learner, columns: slice = slice(None), seed: int = 3):
    """A batch with those columns of a random unroll of 4."""
    batch = make_batch(learner.spec, learner.config.batch_size, learner.device)
    rng = np.random.default_rng(seed)
    for name, (before, after, dtype) in unroll_layout(learner.spec.environment, T, 0).items():
        shape = (*before, 4, *after)
        whole = rng.normal(size=shape) if dtype == "float32" else rng.integers(0, 2, shape)
        part = whole[:, columns] if before else whole[columns]
        getattr(batch.arrays, name)[...] = 0 if name == "weights_version" else part
    return batch


def flat(learner: Learner) -> torch.Tensor:
    return weights.flatten(learner.agent)


def test_the_entropys_weight_falls_with_the_learning_rate_where_asked(learner_of):
    frames = 4 * T  # of 1000
    for decays, expected in ((True, 0.5 * (1 - frames / 1000)), (False, 0.5)):
        learner, tally = learner_of(batch_size=4, entropy_cost=0.5, entropy_decay=decays)
        for _ in range(2):
            learner.update(fill(learner), tally)
            metrics = learner._metrics
        weighted, entropy = metrics["entropy_loss"].item(), metrics["entropy"].item()
        assert learner.state.frames == 2 * frames
        assert weighted == pytest.approx(-expected * entropy * frames, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(learner_of):
    learners = [learner_of(batch_size=4, compile=compiles) for compiles in (False, True)]
    for seed in (1, 2, 3):
        for learner, tally in learners:
            learner.update(fill(learner, seed=seed), tally)
    plain, compiled = (flat(learner) for learner, _ in learners)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    assert [name for name, _ in weights.layout(learners[1][0].agent)] == [
        name for name, _ in weights.layout(learners[0][0].agent)
    ]


def test_compiling_without_a_compiler_is_told(learner_of, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        learner_of(batch_size=4, compile=True)


def test_a_virtual_batch_is_exactly_one_large_batch(learner_of):
    whole, whole_tally = learner_of(batch_size=4)
    parts, parts_tally = learner_of(batch_size=2, virtual_batch_size=4)
    start = flat(whole)
    assert torch.equal(start, flat(parts))
    for seed in (1, 2, 3):
        whole.update(fill(whole, seed=seed), whole_tally)
        before = flat(parts)
        parts.update(fill(parts, slice(0, 2), seed), parts_tally)
        assert torch.equal(before, flat(parts))  # not before the virtual batch is whole
        parts.update(fill(parts, slice(2, 4), seed), parts_tally)
        assert (parts.state.updates, parts.state.frames) == (seed, 4 * T * seed)
        assert (whole.state.updates, whole.state.frames) == (seed, 4 * T * seed)
        ours, theirs = whole_tally.take(), parts_tally.take()
        assert theirs["metrics"] == pytest.approx(ours["metrics"], rel=1e-5, abs=1e-6)
        assert "grad_norm" in ours["metrics"]
        # Acted with weights of no update, and learned from after seed - 1 of them.
        assert ours["lag"] == theirs["lag"] == seed - 1
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(flat(whole), start, rtol=1e-3, atol=1e-5)


def test_a_reused_batch_is_that_batch_several_times(learner_of):
    thrice, thrice_tally = learner_of(batch_size=4, batch_reuse=3)
    single, single_tally = learner_of(batch_size=4, learning_rate=0.00048)
    thrice.update(fill(thrice), thrice_tally)
    for _ in range(3):
        single.state.frames = 0  # the schedule counts frames, not updates
        single.update(fill(single), single_tally)
    assert (thrice.state.updates, thrice.state.frames) == (3, 4 * T)
    assert torch.equal(flat(thrice), flat(single))


class Broken(Exception):
    pass


def fail_after(learner: Learner, updates: int, spoil=lambda learner: None) -> None:
    """Has the learner's loop make so many real updates, and then fail."""

    def update(batch, tally):
        if learner.state.updates == updates:
            spoil(learner)
            raise Broken
        Learner.update(learner, batch, tally)

    learner.update = update
    agreed = Round(stop=0, failed=0, waiting=0, log=0, save=0)
    learner._next_round = lambda *_: (fill(learner), agreed, None)


def test_an_error_in_the_loop_costs_no_training(learner_of):
    learner, _ = learner_of(batch_size=4)
    fail_after(learner, 2)
    with pytest.raises(Broken):
        learner.train(lambda: False)
    assert checkpoint.restore(learner.logdir)["updates"] == 2


def test_a_checkpoint_that_fails_too_does_not_hide_the_error(learner_of, small_disk, caplog):
    learner, _ = learner_of(batch_size=4)
    learner.logdir = small_disk
    full(small_disk / "filler")
    fail_after(learner, 1)
    with pytest.raises(Broken):
        learner.train(lambda: False)
    assert f"no checkpoint can be written to {small_disk}: No space left" in caplog.text


def test_weights_that_are_no_numbers_are_not_the_last_checkpoint(learner_of):
    learner, _ = learner_of(batch_size=4)
    fail_after(learner, 1, lambda learner: learner.parameters[0].data.fill_(float("nan")))
    with pytest.raises(Broken):
        learner.train(lambda: False)
    assert checkpoint.restore(learner.logdir) is None


def test_a_checkpoint_that_fails_is_told_and_tried_again(learner_of, small_disk):
    learner, _ = learner_of(batch_size=4, save_checkpoint_secs=600.0)
    learner.logdir = small_disk
    full(small_disk / "filler")
    with Progress(
        learner.config, learner.group, learner.state, learner.endpoint, small_disk, "sum"
    ) as progress:
        began = time.monotonic()
        assert not progress.save()
        assert progress._save_at < began + 100
        progress.write(0.1)
        told = learner.endpoint.status()["unwritten"]
        assert told[0] == f"no checkpoint can be written to {small_disk}: No space left on device"
        with pytest.raises(RuntimeError, match="training since the checkpoint before is lost"):
            progress.save_last()
        (small_disk / "filler").unlink()
        assert progress.save()
        assert progress._save_at > time.monotonic() + 500
        progress.write(0.1)
        told = learner.endpoint.status()["unwritten"]
        assert not any(words.startswith("no checkpoint") for words in told)
        progress.end()
    assert checkpoint.restore(small_disk)["frames"] == 0


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(UserError, match="virtual_batch_size=5 is no multiple of --batch_size=2"):
        check(Config(batch_size=2, virtual_batch_size=5))
    with pytest.raises(UserError, match=r"--batch_reuse, .* need a batch at hand"):
        check(Config(batch_size=2, virtual_batch_size=4, batch_reuse=2))


def test_a_seed_gives_the_same_initial_weights(learner_of):
    first, again, other = (learner_of(batch_size=4, seed=seed)[0] for seed in (7, 7, 8))
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))


@pytest.mark.parametrize(
    "flags", [{"algorithm": "impala"}, {"algorithm": "appo", "normalize_values": True}]
)
def test_what_is_not_finite_changes_nothing_and_is_told(learner_of, caplog, flags):
    learner, tally = learner_of(batch_size=4, reward_clipping="none", **flags)
    learner.update(fill(learner, seed=1), tally)
    before, kept = flat(learner), [tensor.clone() for tensor in learner.state._tensors()]
    bad = fill(learner)
    bad.origins[:] = [f"actor 0-{column} on here" for column in range(4)]
    bad.arrays.reward[2, 3] = np.inf
    learner.update(bad, tally)
    if "normalize_values" in flags:  # the head is where finite targets would have had it
        assert torch.isfinite(flat(learner)).all()
    else:
        assert torch.equal(flat(learner), before)
        assert all(map(torch.equal, learner.state._tensors(), kept))
    assert (learner.state.updates, learner.state.skipped) == (1, 1)
    assert learner.state.frames == 2 * 4 * T
    (words,) = [one.getMessage() for one in caplog.records if "not finite" in one.getMessage()]
    for part in ("update 2 is not made", "--level_name=CartPole-v1", "policy gradient, baseline;"):
        assert part in words
    assert "the largest reward inf, of actor 0-3 on here" in words
    learner.update(fill(learner, seed=2), tally)
    assert learner.state.updates == 2
    assert not torch.equal(flat(learner), before)
    assert np.isfinite(list(tally.take()["metrics"].values())).all()


def test_weights_that_are_not_finite_are_neither_published_nor_saved(learner_of, tmp_path):
    learner, _ = learner_of(batch_size=4)
    published = learner.endpoint._weights
    with torch.no_grad():
        learner.parameters[0][0, 0] = float("nan")
    with pytest.raises(NotFinite, match="the weights are not finite after update 0"):
        learner._publish()
    assert learner.endpoint._weights is published
    with pytest.raises(NotFinite, match="no checkpoint was written"):
        learner.state.save(learner.logdir, learner.config)
    assert not list(learner.logdir.glob("checkpoint*"))


@pytest.mark.parametrize("at", [0, 12])
def test_a_gradient_far_beyond_the_usual_is_told(learner_of, caplog, at):
    for clipping in (-1.0, 40.0):
        caplog.clear()
        flags = {"batch_size": 4, "reward_clipping": "none", "learning_rate": 1e-6}
        learner, tally = learner_of(**flags, gradients_clipping=clipping)
        for seed in range(13):
            batch = fill(learner, seed=seed)
            if seed == at:
                batch.arrays.reward[2, 3] = 1e12
            learner.update(batch, tally)
            told = f"update {at + 1}: its gradient's norm" in caplog.text
            assert told == (clipping < 0 and seed >= max(at, 9))
        assert caplog.text.count("times the usual") == (clipping < 0)
        assert learner.state.skipped == 0
