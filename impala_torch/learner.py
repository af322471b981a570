"""The learner: takes a batch, computes the loss, reduces gradients, steps, publishes weights.

All learners of a run go through the same rounds. In each they first tell each other (``Round``,
``Stock``) whether to stop, to wait, to log or to save, and what data each has, so that those who
have too much share it. Only then do they train, all of them, so that every rank counts the same
updates and frames without talking.
"""

import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from impala_torch import __version__, agents, environments
from impala_torch.agents import precision, weights
from impala_torch.agents.stacking import stack_frames
from impala_torch.algorithms import ALGORITHMS
from impala_torch.algorithms.base import add_metrics
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint.batches import Batch, BatchQueue, Stock
from impala_torch.endpoint.run_spec import run_spec_of
from impala_torch.endpoint.server import EndpointServer
from impala_torch.evaluation.process import EvaluationProcess
from impala_torch.flags import exit_codes
from impala_torch.flags.config import Config, having, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.flags.shares import shared_out
from impala_torch.learning import finite, optimizers
from impala_torch.learning.feed import Feed, make_batch
from impala_torch.learning.finite import NotFinite
from impala_torch.learning.group import AVERAGE, ENDING, LEARNING, SAVING, WAITING, Group
from impala_torch.learning.outliers import Norms
from impala_torch.learning.sharing import Sharing
from impala_torch.learning.training_state import TrainingState
from impala_torch.learning.watchdog import Watchdog
from impala_torch.machine import cores, devices, malloc
from impala_torch.report import provenance, rundir
from impala_torch.report.progress import Progress
from impala_torch.report.tally import Tally
from impala_torch.structures import AgentInput, AgentOutput, EnvironmentSpec, Unroll

log = logging.getLogger(__name__)

# Flags that may differ between the learners of a run.
_OWN = having(per_learner=True)
_TRIAL_SIZE = 128  # observations that arithmetic is tried with; more are alike
_POLL_SECS = 0.5  # how long a learner without a batch waits before it looks around
# The same of one among several, who may get a batch of what the others have, and the others of
# what it has: often while it should not last, seldom where it does.
_SHARING_POLL_SECS = (0.002, 0.05)
_COMING_SECS = 0.0005  # where unrolls are on their way to it
_HUNGRY_SECS = 30.0  # no batch for so long is worth a warning
_SKIPPED_SECS = 10.0  # between words on gradients that are not finite, or far too large


class Round(NamedTuple):
    """What the ranks agree on before each update: the largest of everyone's words.

    Each tells its ``Stock`` with them.
    """

    stop: int  # somebody wants to stop
    failed: int  # because of an error
    waiting: int  # somebody has no batch
    log: int  # rank 0 is due to log
    save: int  # rank 0 is due to write a checkpoint


class Learner:
    """One rank of the learner group and the endpoint of its worker set."""

    def __init__(self, config: Config, group: Group, logdir: pathlib.Path) -> None:
        """
        Args:
          config: the flags.
          group: the learners of the run.
          logdir: the run's directory; exists and can be written to on rank 0.

        Raises:
          UserError: flags that do not fit each other, the other learners, or a checkpoint.
        """
        self.config, self.group, self.logdir = config, group, logdir
        self.device = devices.choose(config.device, group.local_rank)
        group.check_device(self.device)
        malloc.keep_freed()
        threads = config.learner_threads or max(1, cores.usable() // group.local_size)
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        shared = {name: value for name, value in to_dict(config).items() if name not in _OWN}
        code = {"version": __version__, "torch": torch.__version__, "code": provenance.code()}
        group.check_same({**code, **shared})

        level = environments.level_of(config)
        spec = environments.environment_spec(level)
        make = functools.partial(agents.make_for, config, spec)
        self.agent = make(self._dtype(make, spec)).to(self.device)
        if config.compile:
            devices.check_compiles(self.device)
        # Beside the agent, whose weights keep their names in checkpoints and on the wire.
        self._network = torch.compile(self.agent) if config.compile else self.agent
        self.parameters = list(self.agent.parameters())
        self._stack = spec.observation.stack
        self.algorithm = ALGORITHMS[config.algorithm](config, self.agent, self.forward, group)
        optimizer = optimizers.make(self.algorithm.optimizer, self.parameters, config)
        self.state = TrainingState(self.agent, optimizer, self.algorithm.kept())
        self.state.restore(logdir, config, group)
        self.optimizer = group.distributed(
            optimizer,
            self.agent.named_parameters(),
            config.batches_per_step,
            config.gradients_precision,
            self.reduction,
        )
        self.state.optimizer = self.optimizer
        self.spec = run_spec_of(config, level, spec, self.agent.state_size)
        steps = group.size * config.batch_size * config.unroll_length
        self.frames_per_batch = steps * level.num_action_repeats
        self._backwards = 0  # since the last step
        self._skipped_in_a_row = 0  # batches without an update, since none was finite
        self._told_skipped = self._told_outlier = -math.inf  # when
        self._norms = Norms()
        self._metrics: dict[str, torch.Tensor] = {}  # of those
        self.batches = BatchQueue(
            self.spec,
            config.batch_size,
            config.queue_capacity,
            lambda: make_batch(self.spec, config.batch_size, self.device),
            config.max_policy_lag,
            shared=group.size > 1,
        )
        self.feed = Feed(self.batches, self.device)
        self.sharing = Sharing(group, self.batches, self.spec, config.batch_size)
        self.endpoint = EndpointServer(
            config.learner_host,
            self.spec,
            weights.layout(self.agent),
            self.batches,
            num_actors=len(config.actors),
            weights_dtype=config.weights_precision,
            worker_set=group.rank,
            run_id=logdir.name,
            frames=self.state.frames,
            keys=curve.for_address(config.learner_host, config.key_file),
        )
        self._publish()

    def _dtype(
        self, make: Callable[[torch.dtype], agents.Agent], spec: EnvironmentSpec
    ) -> torch.dtype:
        """The torso's arithmetic: bfloat16 only where that is right for all ranks."""
        config = self.config
        size = config.batch_size // config.num_minibatches * (config.unroll_length + 1)
        size = min(size, _TRIAL_SIZE)
        found = precision.choose(config.precision, self.device, make, spec, size, learning=True)
        others = self.group.agree([int(found == torch.float32)])
        dtype = torch.float32 if others[0] else found
        log.info("learning in %s", precision.name_of(dtype))
        return dtype

    # --- the loop ---

    def train(self, should_stop: Callable[[], bool]) -> None:
        """Trains to the frame limit, or until any rank's ``should_stop()``; then saves.

        Raises:
          NotFinite: the numbers are not, again and again; the checkpoint is of before.
          RuntimeError: this rank, or another, failed, after which a checkpoint was tried all the
            same; or the last one could not be written.
        """
        with Progress(
            self.config, self.group, self.state, self.endpoint, self.logdir, self.reduction
        ) as progress:
            self.group.phase = LEARNING
            failure = None
            try:
                while self.state.frames < self.config.total_environment_frames:
                    batch, agreed, failure = self._next_round(should_stop, progress)
                    if agreed.save:
                        self._save(progress.save)
                    if agreed.log:
                        progress.write(self.learning_rate)
                    if agreed.stop or batch is None:
                        break
                    self.update(batch, progress.tally)
                    if self._skipped_in_a_row >= finite.MOST_IN_A_ROW:  # on all ranks at once
                        failure = NotFinite(
                            f"{self._skipped_in_a_row} batches in a row gave no gradient that is "
                            "finite: the log says above what had them"
                        )
                        break
                self.sharing.close()
                progress.write(self.learning_rate)
            except BaseException:
                self._save(progress.rescue)
                raise
            if isinstance(failure, NotFinite):
                self._save(progress.save_last)
                progress.end()
                raise failure
            if failure is not None:
                self._save(progress.rescue)
                progress.end()
                raise RuntimeError(f"learner {self.group.rank} failed: {failure}") from failure
            self._save(progress.save_last)  # after the last numbers, whose games it counts
            progress.end()
            if self.state.frames < self.config.total_environment_frames and agreed.failed:
                raise RuntimeError("another learner failed: see its log")

    @property
    def reduction(self) -> str:
        """How the ranks' gradients become one."""
        if self.config.gradients_reduction == "average":
            return AVERAGE
        return self.algorithm.reduction

    def update(self, batch: Batch, tally: Tally) -> None:
        """What all ranks do with a batch each: reduce its gradients, and step where that is due."""
        tally.learned_from(batch.arrays, self.state.updates)
        unroll = self.feed.on_device(batch)
        self._observe(unroll)
        unroll = self.prepared(unroll)
        made, skipped = self.state.updates, self.state.skipped
        for part in self.algorithm.parts(unroll, self.state.updates):
            loss, metrics = self.algorithm.loss(part, self.entropy_cost)
            if self._backwards == 0:
                self.optimizer.zero_grad()
            loss.backward()
            self.feed.prepare_next()  # before anything waits for the device
            self._backwards += 1
            self._metrics = add_metrics(self._metrics, metrics, self._backwards)
            if self._backwards == self.config.batches_per_step:
                self._step(batch, tally)
                self._backwards = 0
        if self.state.updates > made:
            self._skipped_in_a_row = 0
        elif self.state.skipped > skipped:
            self._skipped_in_a_row += 1
        self.algorithm.used(self._decayed(1.0))
        if self._backwards == 0:
            self.state.frames += self.frames_per_batch * self.config.batches_per_step
            self._publish()
        self.feed.recycle(batch)

    def _observe(self, unroll: Unroll[torch.Tensor]) -> None:
        """Has the agent's statistics of what it sees follow all ranks' batches."""
        if self.agent.normalizer is not None:
            newest = unroll.observation[self._stack - 1 :]
            self.agent.normalizer.follow(newest, self.group.average)

    def _step(self, batch: Batch, tally: Tally) -> None:
        """Steps, unless the gradient is not finite, which is so on all ranks or none."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        norm = self.group.step(self.optimizer, self.parameters, self.config.gradients_clipping)
        if math.isfinite(norm):
            self.state.updates += 1
            self.algorithm.stepped()
            tally.stepped(self._metrics, norm)
            self._tell_outlier(norm)
            return
        self.state.skipped += 1
        now = time.monotonic()
        if now - self._told_skipped > _SKIPPED_SECS:
            self._told_skipped = now
            half = self.group.size > 1 and self.config.gradients_precision == "float16"
            log.warning(
                "update %d is not made (%d so far): its gradient is not finite; --level_name=%s; "
                "learner %d: %s",
                self.state.updates + 1,
                self.state.skipped,
                self.config.level_name,
                self.group.rank,
                finite.what_was_not(self._metrics, batch.arrays, batch.origins, half),
            )

    def _tell_outlier(self, norm: float) -> None:
        """Warns of a gradient that nothing clips and that is far beyond the others."""
        if self.config.gradients_clipping >= 0:
            return
        found = self._norms.see(self.state.updates, norm)
        now = time.monotonic()
        if found is not None and now - self._told_outlier > _SKIPPED_SECS:
            self._told_outlier = now
            log.warning(
                "update %d: its gradient's norm, %.3g, is %.0g times the usual, which can spoil "
                "what was learned: --gradients_clipping and --reward_clipping bound it",
                *found,
            )

    def prepared(self, unroll: Unroll[torch.Tensor]) -> Unroll[torch.Tensor]:
        """An unroll whose observations [T + 1, B, ...] are as the network takes them, stacked."""
        stacks = stack_frames(unroll.observation, unroll.done, self._stack)
        return unroll._replace(observation=self.agent.prepared(stacks))

    def forward(
        self, unroll: Unroll[torch.Tensor], network: torch.nn.Module | None = None
    ) -> AgentOutput:
        """The agent's outputs [T + 1, B, ...] over an unroll, from the agent state at row 0.

        Args:
          unroll: [T + 1, B, ...], ``prepared``.
          network: another than the agent that is trained, of its kind.
        """
        inputs = AgentInput(
            observation=unroll.observation,
            reward=unroll.reward,
            done=unroll.done,
            last_action=torch.cat([unroll.initial_action.unsqueeze(0), unroll.action[:-1]]),
        )
        outputs, _ = (network or self._network)(inputs, unroll.agent_state)
        return outputs

    @property
    def learning_rate(self) -> float:
        """At this update: on its schedule, and as the algorithm has it larger or smaller."""
        return self._decayed(self.config.learning_rate) * self.algorithm.learning_rate_scale

    @property
    def entropy_cost(self) -> float:
        cost = self.config.entropy_cost
        return self._decayed(cost) if self.config.entropy_decay else cost

    def _decayed(self, start: float) -> float:
        total = self.config.total_environment_frames
        return optimizers.linear_decay(start, self.state.frames, total)

    def close(self) -> None:
        """Tells the actors to stop and ends the endpoint."""
        self.endpoint.close()
        self.batches.close()

    def _next_round(
        self, should_stop: Callable[[], bool], progress: Progress
    ) -> tuple[Batch | None, Round, BaseException | None]:
        """Waits until all ranks have a batch, or one stops (then the batch is None)."""
        batch: Batch | None = None
        failure: BaseException | None = None
        hungry_since = warned = time.monotonic()
        while True:
            if failure is None and not should_stop():
                try:
                    # With a batch in hand too: others may live on what comes here.
                    if self.endpoint.error is not None:
                        raise self.endpoint.error
                    self.sharing.collect()
                    if batch is None:
                        with progress.tally.waiting(), self.group.at(WAITING):
                            batch = self._get_batch(time.monotonic() - hungry_since)
                except Exception as error:
                    log.exception("learner %d failed", self.group.rank)
                    failure = error
            due = progress.due() if self.group.rank == 0 else (0, 0)
            words = Round(
                stop=int(failure is not None or should_stop()),
                failed=int(failure is not None),
                waiting=int(batch is None),
                log=due[0],
                save=due[1],
            )
            told = time.monotonic()
            everyone = self.group.tell([*words, *self.sharing.stock(in_hand=batch is not None)])
            now = time.monotonic()
            agreed = Round(*everyone[:, : len(words)].max(axis=0).tolist())
            if agreed.waiting:  # learners wait together: one that has a batch, for another's
                progress.tally.add_wait(now - told)
            if not agreed.stop:
                self.sharing.share([Stock(*row) for row in everyone[:, len(words) :].tolist()])
            if agreed.stop or not agreed.waiting:
                return (None if agreed.stop else batch), agreed, failure
            if agreed.log:
                progress.write(self.learning_rate)
            if agreed.save:
                self._save(progress.save)
            if batch is None and now - warned > _HUNGRY_SECS:
                warned = now
                self._warn_hungry(now - hungry_since)

    def _get_batch(self, hungry_secs: float) -> Batch | None:
        """The next batch, or None where it takes longer than one should not look around."""
        if self.group.size == 1:
            return self.feed.get(_POLL_SECS)
        first, longest = _SHARING_POLL_SECS
        patience = min(max(first, hungry_secs / 10), longest)
        deadline = time.monotonic() + patience
        while True:
            self.sharing.collect()
            secs = _COMING_SECS if self.sharing.expects else deadline - time.monotonic()
            batch = self.feed.get(max(0.0, secs))
            if batch is not None or time.monotonic() >= deadline:
                return batch

    def _save(self, save: Callable[[], object]) -> None:
        with self.group.at(SAVING):
            save()

    def _warn_hungry(self, secs: float) -> None:
        missing = self.endpoint.missing_tasks()
        log.warning(
            "learner %d has had no batch for %.0f s; connected actors: %d of %d%s%s",
            self.group.rank,
            secs,
            self.endpoint.num_connected,
            len(self.config.actors),
            f", missing: {missing[:20]}" if missing else "",
            f"; last bad message: {self.endpoint.last_bad}" if self.endpoint.last_bad else "",
        )

    # --- weights and batches ---

    def _publish(self) -> None:
        """Gives actors the weights. Raises NotFinite, and gives nothing, where they are not."""
        if not finite.weights_are_finite(self.parameters):
            raise NotFinite(f"the weights are not finite after update {self.state.updates}")
        packed = weights.pack(self.agent, self.config.weights_precision)
        self.endpoint.publish(self.state.updates, packed, self.state.frames)


def run(config: Config, group: Group, should_stop: Callable[[], bool]) -> int:
    """Trains as one learner of ``group``, for actors started elsewhere.

    Returns:
      The exit code, one of ``flags.exit_codes``.
    """
    with Watchdog(group, config.stall_secs, should_stop) as watchdog:
        code = _run(config, group, should_stop, watchdog)
        group.close()
    return code


def _run(config: Config, group: Group, should_stop: Callable[[], bool], watchdog: Watchdog) -> int:
    code = exit_codes.FINISHED
    try:
        logdir = _agree_on_logdir(config, group)
        log.info("learner %d of %d, logdir: %s", group.rank, group.size, logdir)
        config = shared_out(config.replace(total_num_envs=0), group.size, None)
        learner = Learner(config, group, logdir)
        learner.endpoint.standing = watchdog.status
        if group.rank > 0:
            config = config.replace(eval_interval_frames=0)  # one evaluator is enough
        with EvaluationProcess(config, logdir, should_stop) as evaluation:
            try:
                learner.train(evaluation.should_stop)
            finally:
                group.phase = ENDING
                learner.close()
    except UserError as error:
        log.error("error: %s", error)
        code = exit_codes.USERS_MISTAKE
    except NotFinite as error:
        log.error("error: %s", error)
        code = exit_codes.NOT_FINITE
    except Exception:  # whatever it is, the other ranks must not wait for this one
        log.exception("learner %d ends", group.rank)
        code = exit_codes.FAILED
    if code and group.size > 1:
        # The others may be waiting for this one in a place where nothing can be agreed on.
        group.abort(code)
    return code


def _agree_on_logdir(config: Config, group: Group) -> pathlib.Path:
    """Rank 0's directory, prepared. Raises UserError on every rank where it cannot be."""
    chosen, problem = "", ""
    if group.rank == 0:
        try:
            chosen = str(rundir.prepare(config))
        except UserError as error:
            problem = str(error)
    chosen, problem = group.gather([chosen, problem])[0]
    if problem:
        raise UserError(problem)
    logdir = pathlib.Path(chosen)
    try:
        rundir.log_to(logdir / "workers" / f"learner-{group.rank}-{max(config.task, 0)}.log")
    except OSError as error:  # of another host, where rank 0's directory cannot be
        log.warning("learner %d keeps no log of its own: %s", group.rank, error)
    return logdir
