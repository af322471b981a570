"""Asks the endpoints of a run how they are."""

import concurrent.futures

from frontend import commands
from frontend.run_plan import Plan
from frontend.watch.status import SetStatus
from impala_torch.flags.errors import UserError

OPERATOR_KEY = "operator.key"


def ask_all(run: Plan, timeout_secs: float = 2.0) -> list[SetStatus]:
    """The status of every worker set, None where its endpoint does not answer in time."""
    # Slow to import, and --dry_run needs none of it.
    from impala_torch.endpoint import keys as curve
    from impala_torch.endpoint.client import ask_status

    path = run.config.key_file or str(run.directory / OPERATOR_KEY)
    try:
        keys = curve.load(path) if run.keyed else None
    except UserError:  # the run has ended, and its keys with it
        return [_of(run, index, None) for index in range(len(run.sets))]

    def ask(index: int) -> SetStatus:
        address = run.sets[index].endpoint
        try:
            return _of(run, index, ask_status(address, keys, timeout_secs))
        except UserError:  # a name that is not known any more
            return _of(run, index, None)

    with concurrent.futures.ThreadPoolExecutor(min(16, len(run.sets))) as pool:
        return list(pool.map(ask, range(len(run.sets))))


def absent(run: Plan, statuses: list[SetStatus], after_secs: float) -> list[str]:
    """Names of the actors whose learner answers and has not heard of them for so long."""
    missing = []
    for one in statuses:
        if one.status is None:
            continue
        here = {
            actor["task"]
            for actor in one.status["actors"]
            if actor["last_seen_secs"] < after_secs and actor["state"] != "gone"
        }
        missing += [
            commands.actor_name(one.index, task) for task, _ in one.actors if task not in here
        ]
    return missing


def gone(statuses: list[SetStatus]) -> list[str]:
    """Names of the actors that were here, and of whom their learner has long heard nothing."""
    return [
        commands.actor_name(one.index, actor["task"])
        for one in statuses
        for actor in (one.status["actors"] if one.status else [])
        if actor["state"] == "gone"
    ]


def _of(run: Plan, index: int, status: dict | None) -> SetStatus:
    worker_set = run.sets[index]
    actors = tuple((task, actor.ip) for task, actor in enumerate(worker_set.actors))
    length = run.config.unroll_length
    return SetStatus(index, worker_set.learner.address, status, actors, length)
