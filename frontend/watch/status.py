"""What a run is doing, from the status of its endpoints: a table, JSON, and warnings in words."""

import dataclasses
import json
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from frontend.commands import actor_name
from frontend.tables import table as lines_of

_SLOW = 5.0  # times slower than its set's median is worth a warning
_MAX_NAMED = 8
# A learner's figures come at intervals; older than so many of them, they tell of the past.
_OLD_INTERVALS = 3.0
_BUSY_SECS = 60.0  # they may be older where a learner has work of its own, such as a checkpoint
_STILL_SECS = 30.0  # that learners may take over something together before there are figures
# An actor speaks with each unroll: a silence of so many unrolls and so long is worth a word.
_SILENT_UNROLLS, _SILENT_SECS = 3.0, 10.0
_LEARNER_COLUMNS = ("frames", "frames/s", "updates/s", "loss", "lag", "queue", "shares", "state")


@dataclasses.dataclass(frozen=True)
class SetStatus:
    """A worker set, and what its endpoint says of itself."""

    index: int
    address: str  # the learner's ip:port
    status: Mapping[str, Any] | None  # EndpointServer.status(); None without an answer
    actors: tuple[tuple[int, str], ...]  # expected: (task, host) of each
    unroll_length: int = 0  # T; 0 where it is not known

    @property
    def stalled_secs(self) -> float:
        """How long the learner has stood still, by its own clock; 0 while it goes on."""
        status = self.status or {}
        still = status.get("still_secs", 0.0)
        if "frames" not in status:
            return still if still > _STILL_SECS else 0.0
        age = status.get("figures_age_secs", 0.0)
        may = _OLD_INTERVALS * status.get("interval_secs", math.inf)
        return age if age > (may if still else max(may, _BUSY_SECS)) else 0.0

    @property
    def connected(self) -> list[Mapping[str, Any]]:
        """The actors that are there."""
        actors = self.status["actors"] if self.status else []
        return [actor for actor in actors if actor["state"] != "gone"]


def table(sets: Sequence[SetStatus]) -> str:
    """What --action=status prints."""
    lines = lines_of(learner_rows(sets))
    lines += ["", *lines_of(actor_rows(sets)), "", summary(sets)]
    lines += [f"warning: {words}" for words in problems(sets)]
    return "\n".join(lines)


def as_json(sets: Sequence[SetStatus]) -> str:
    """The same for programs: a list, an object for each worker set."""
    told = [{**dataclasses.asdict(one), "stalled_secs": one.stalled_secs} for one in sets]
    return json.dumps(told, indent=1)


def learner_rows(sets: Sequence[SetStatus]) -> list[Sequence[str]]:
    """A row for each learner, below a heading."""
    rows: list[Sequence[str]] = [("learner", "host", "address", *_LEARNER_COLUMNS)]
    for one in sets:
        status = one.status
        if status is None:
            rows.append(
                (
                    str(one.index),
                    "-",
                    one.address,
                    *["-"] * (len(_LEARNER_COLUMNS) - 1),
                    "no answer",
                )
            )
            continue
        rows.append(
            (
                str(one.index),
                printable(status["host"]),
                one.address,
                short(status.get("frames")),
                # What was so before it stood still is not so now.
                "-" if one.stalled_secs else short(status.get("frames_per_sec")),
                "-" if one.stalled_secs else _decimal(status.get("updates_per_sec")),
                _decimal(status.get("total_loss")),
                _decimal(status.get("policy_lag")),
                str(status.get("queue_batches", "-")),
                shares(status),
                learner_state(one),
            )
        )
    return rows


def shares(status: Mapping[str, Any]) -> str:
    """What a learner gives to the others of its data, and gets of theirs, in unrolls a second."""
    given, received = status.get("given_per_sec"), status.get("received_per_sec")
    parts = [f"gives {short(given)}/s"] if given else []
    parts += [f"gets {short(received)}/s"] if received else []
    return ", ".join(parts) or "-"


def learner_state(one: SetStatus) -> str:
    """What a learner is at, in words."""
    if one.status is None:
        return "no answer"
    phase, secs = one.status.get("phase"), one.status.get("phase_secs", 0.0)
    if one.stalled_secs:
        return f"stalled for {duration(one.stalled_secs)}" + (f" ({phase})" if phase else "")
    if phase and secs > _STILL_SECS:
        return f"{phase} for {duration(secs)}"
    if "frames" not in one.status:
        return "starting"
    waits = one.status.get("batch_wait_share") or 0.0
    idle = not one.status.get("updates_per_sec")
    return "waiting for data" if idle or waits > 0.9 else "training"


def actor_rows(
    sets: Sequence[SetStatus], only: Collection[tuple[int, int]] | None = None
) -> list[Sequence[str]]:
    """A row for each actor that is expected, below a heading; ``only`` some, by (set, task)."""
    heading = ("actor", "host", "envs", "steps/s", "episodes", "waits", "lag", "weights", "seen")
    rows: list[Sequence[str]] = [(*heading, "state")]
    unroll_lengths = {one.index: one.unroll_length for one in sets}
    for index, task, host, actor in actors_of(sets):
        if only is not None and (index, task) not in only:
            continue
        name = actor_name(index, task)
        if actor is None:
            rows.append((name, host, *["-"] * 7, "not connected"))
            continue
        via = ", by relay" if actor.get("relayed") else ""
        rows.append(
            (
                name,
                printable(actor["host"]),
                str(actor["num_envs"]),
                short(actor["steps_per_sec"]),
                short(actor["episodes"]),
                _percent(actor.get("waiting_share")),
                _plain(actor.get("lag")),
                _seconds(actor.get("weights_age_secs")),
                _seconds(actor["last_seen_secs"]),
                f"{actor_state(actor, unroll_lengths[index])}{via}",
            )
        )
    return rows


def actor_state(actor: Mapping[str, Any], unroll_length: int) -> str:
    """What an actor is at, in words: one that acts speaks with each of its unrolls."""
    silent, rate = actor["last_seen_secs"], actor["steps_per_sec"]
    unroll_secs = actor["num_envs"] * unroll_length / rate if rate else 0.0
    if actor["state"] == "acting" and silent > max(_SILENT_SECS, _SILENT_UNROLLS * unroll_secs):
        return f"silent for {silent:.0f} s"
    return actor["state"]


def actors_of(
    sets: Sequence[SetStatus],
) -> Iterator[tuple[int, int, str, Mapping[str, Any] | None]]:
    """(set, task, host, what its learner says of it or None) of each expected actor."""
    for one in sets:
        known = {actor["task"]: actor for actor in (one.status["actors"] if one.status else [])}
        for task, host in one.actors:
            yield one.index, task, host, known.get(task)


def summary(sets: Sequence[SetStatus]) -> str:
    """The whole run in a line, and where it is bound."""
    told = [one for one in sets if one.status and "frames" in one.status]
    first: Mapping[str, Any] = told[0].status or {} if told else {}
    stalled = told[0].stalled_secs if told else 0.0
    here = sum(len(one.connected) for one in sets)
    expected = sum(len(one.actors) for one in sets)
    total = first.get("total_environment_frames")
    share = f" of {short(total)} ({first['frames'] / total:.1%})" if total else ""
    parts = [
        f"frames {short(first.get('frames'))}{share}",
        f"stalled for {duration(stalled)}"
        if stalled
        else f"{short(first.get('frames_per_sec'))} frames/s",
        f"actors {here} of {expected}",
    ]
    raw = first.get("episode_raw_return", first.get("episode_return"))
    if raw is not None:
        parts.append(f"return {raw:.1f} (last {first.get('games_in_mean', '?')} games)")
    if total and first.get("frames_per_sec") and not stalled:
        left = (total - first["frames"]) / first["frames_per_sec"]
        parts.append(f"left {duration(left)}")
    line = "   ".join(parts)
    return f"{line}\n{first['bound']}" if first.get("bound") and not stalled else line


def problems(sets: Sequence[SetStatus]) -> list[str]:
    """What is amiss, in words, the worst first."""
    words = [
        f"learner {one.index} at {one.address} does not answer" for one in sets if not one.status
    ]
    words += [_standing(one) for one in sets if one.stalled_secs]
    missing = [
        actor_name(index, task)
        for index, task, _, actor in actors_of([one for one in sets if one.status])
        if actor is None or actor["state"] == "gone"
    ]
    if missing:
        words.append(f"{len(missing)} actor(s) not connected: {_named(missing)}")
    silent = [
        actor_name(one.index, actor["task"])
        for one in sets
        for actor in one.connected
        if actor_state(actor, one.unroll_length).startswith("silent")
    ]
    if silent:
        words.append(f"{len(silent)} actor(s) silent for longer than usual: {_named(silent)}")
    for one in sets:
        status = one.status
        if status is None:
            continue
        words += [f"learner {one.index}: {printable(what)}" for what in status.get("unwritten", [])]
        if status["bad_messages"]:
            last = f"; the last: {printable(status['last_bad'])}" if status.get("last_bad") else ""
            words.append(f"learner {one.index} got {status['bad_messages']} bad message(s){last}")
        if status["denied_connections"]:
            words.append(
                f"learner {one.index} denied {status['denied_connections']} connection(s) without "
                "the run's keys"
            )
        if status.get("skipped_updates") and one.index == sets[0].index:
            words.append(
                f"{status['skipped_updates']} update(s) were not made: their gradient was not "
                "finite, and the learners' logs say why"
            )
        if status.get("late_unrolls"):
            words.append(
                f"learner {one.index} got {status['late_unrolls']} unroll(s) late: slow links? Its "
                "log names the actors"
            )
        if status["dropped_unrolls"]:
            words.append(f"learner {one.index} dropped {status['dropped_unrolls']} old unroll(s)")
        words += _slow(one)
    return words


def short(value: float | None) -> str:
    """A number in at most five characters: 987, 12.3K, 4.5M."""
    if value is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "K" else limit
            return f"{value / scale:.1f}{unit}"
    return f"{value:,.0f}"


def duration(secs: float) -> str:
    """``h:mm:ss``."""
    if secs > 100 * 86400:
        return "> 100 days"
    minutes, seconds = divmod(max(0, int(secs)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def printable(words: str) -> str:
    """What another host said, without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else "?" for char in words)


def _standing(one: SetStatus) -> str:
    status = one.status or {}
    words = f"learner {one.index} has stood still for {duration(one.stalled_secs)}"
    words += f", {status['phase']}" if status.get("phase") else ""
    silent = [f"learner {rank}" for rank in status.get("silent_learners", ())]
    return words + (f"; it hears nothing of {_named(silent)}" if silent else "")


def _slow(one: SetStatus) -> list[str]:
    rates = {actor["task"]: actor["steps_per_sec"] for actor in one.connected}
    if len(rates) < 3:
        return []
    median = statistics.median(rates.values())
    slow = [actor_name(one.index, task) for task, rate in rates.items() if rate * _SLOW < median]
    if not slow:
        return []
    return [f"{_named(slow)}: {_SLOW:.0f} times slower than the others of learner {one.index}"]


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _decimal(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) < 1e4 else short(value)


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"
