"""How many cores this process may use: of the machine's, those that it was given."""

import math
import os
import pathlib

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def usable(cgroup: pathlib.Path = _CGROUP) -> int:
    """Cores that this process may use, at least 1.

    By its affinity (``taskset``, Slurm) and by its control group's quota (containers, systemd),
    whichever is less.

    Args:
      cgroup: where control groups are mounted.
    """
    found = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return found if quota is None else max(1, min(found, math.ceil(quota)))


def _quota(cgroup: pathlib.Path) -> float | None:
    """Cores' worth of time that the control group may use; None without a limit."""
    try:
        own = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
        mine = next((line.split("::", 1)[1] for line in own if line.startswith("0::")), "/")
    except OSError:
        return None
    quotas = []
    folder = cgroup / mine.strip("/")
    # A group's parents limit it too. Within a container its own group is mounted as the root.
    for place in dict.fromkeys([folder, *folder.parents, cgroup]):
        if place != cgroup and cgroup not in place.parents:
            continue
        quotas.append(_read(place))
    known = [quota for quota in quotas if quota is not None]
    return min(known) if known else None


def _read(folder: pathlib.Path) -> float | None:
    try:
        most, period = (folder / "cpu.max").read_text().split()  # of version 2
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())  # of version 1
        of = int((folder / "cpu" / "cpu.cfs_period_us").read_text())
        return micros / of if micros > 0 else None
    except (OSError, ValueError):
        return None
