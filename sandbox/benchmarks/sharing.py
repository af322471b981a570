"""What uneven dealing of actors costs: layouts of the same actors on the same learners, by turns.

    python sandbox/benchmarks/sharing.py [--rounds=2] [--secs=25] [--write]

Actors of a paced environment (paced.py) are as fast as their pace, whatever else the machine does,
so a run's steps per second say how much of what they make was learned from. A layout names each
learner's actors by their pace: "ff ss" is two fast ones on learner 0, two of half the speed on
learner 1; "x" is one that is killed once it acts. A layout is compared with an even one of the same
actors. --write puts the table into sandbox/speed.md.
"""

import argparse
import contextlib
import csv
import datetime
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from frontend.plan.costs import machine  # noqa: E402

BATCH, LENGTH, ENVS = 8, 20, 8  # B of all learners together, T, E
PACE_MS = {"f": 20.0, "s": 40.0, "x": 20.0}
WARM_SECS = 8.0
MARK = "<!-- sharing -->"

# (layout, the even one of the same actors, how much of it the layout has to give)
PAIRS = (
    ("fff f", "ff ff", 1.0),
    ("ffff -", "ff ff", 1.0),
    ("ff f", "f f", 1.5),
    ("ff f", "ff ff", 0.75),
    ("ff ss", "fs fs", 1.0),
    ("ff xx", "f f", 1.0),
    ("ff ff", "ffff", 1.0),  # two learners, and one of the same total batch
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--secs", type=float, default=25.0, help="measured of each run")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    layouts = sorted({layout for pair in PAIRS for layout in pair[:2]})
    told: dict[str, list[dict[str, float]]] = {layout: [] for layout in layouts}
    for number in range(options.rounds):
        for layout in layouts:
            result = run(layout, options.secs)
            told[layout].append(result)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in result.items())
            print(f"round {number + 1}, {layout!r}: {shown}", file=sys.stderr, flush=True)
    lines = report(told)
    print("\n".join(lines))
    if options.write:
        _write(lines)
    return 0


def report(told: dict[str, list[dict[str, float]]]) -> list[str]:
    """The table, from the medians of the rounds."""

    def median(layout: str, name: str) -> float:
        return statistics.median(one[name] for one in told[layout])

    today = datetime.date.today().isoformat()
    lines = [
        f"{machine()}, {today}; each layout {len(next(iter(told.values())))} times, by turns:",
        "",
        "| layout | steps/s | of | of what those would give | moved | lag | lag there |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for layout, even, share in PAIRS:
        rate, base = median(layout, "steps/s"), median(even, "steps/s") * share
        part = f"{share:g} x `{even}`" if share != 1 else f"`{even}`"
        lines.append(
            f"| `{layout}` | {rate:,.0f} | {part} | **{rate / base:.3f}** | "
            f"{median(layout, 'moved'):.0%} | {median(layout, 'lag'):.2f} | "
            f"{median(even, 'lag'):.2f} |"
        )
    return lines


def run(layout: str, secs: float) -> dict[str, float]:
    """A run of a layout: agent steps per second once it is warm, the share moved, the lag."""
    sets = [[actor for actor in one if actor != "-"] for one in layout.split()]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="sharing"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ports = [_free_port() for _ in sets]
        common = [
            *("--level_name=paced:Paced-v0", "--agent_name=MLPAgent", f"--num_envs={ENVS}"),
            *(f"--unroll_length={LENGTH}", f"--batch_size={BATCH // len(sets)}"),
            *(f"--logdir={folder}", "--progress_secs=1", "--learner_threads=1", "--quiet"),
            "--precision=float32",
        ]
        programs = [
            _process("learner", rank, port, actors, common)
            for rank, (port, actors) in enumerate(zip(ports, sets, strict=True))
        ]
        started = [stack.enter_context(_started(_learners(programs)))]
        victims = []
        for port, actors in zip(ports, sets, strict=True):
            for task, actor in enumerate(actors):
                argv = _process("actor", task, port, actors, common)
                process = stack.enter_context(_started(argv, PACE_MS=str(PACE_MS[actor])))
                started.append(process)
                if actor == "x":
                    victims.append(process)
        _wait_for_rows(folder, 3)
        for victim in victims:
            victim.kill()
        time.sleep(WARM_SECS)
        first = len(_rows(folder))
        time.sleep(secs)
        rows = _rows(folder)[first:]
        hours = float(rows[-1]["hours"]) - float(rows[0]["hours"])
        steps = int(rows[-1]["frames"]) - int(rows[0]["frames"])
        return {
            "steps/s": steps / hours / 3600,
            "moved": statistics.fmean(float(row["shared_share"]) for row in rows),
            "lag": statistics.fmean(float(row["policy_lag"]) for row in rows),
        }


def _process(job: str, task: int, port: int, actors: list[str], common: list[str]) -> list[str]:
    hosts = ",".join(f"127.0.0.1:{9001 + index}" for index in range(len(actors)))
    return [
        *(sys.executable, str(ROOT / "experiment.py"), *common, f"--job_name={job}"),
        *(f"--task={task}", f"--learner_host=127.0.0.1:{port}", f"--actor_hosts={hosts}"),
    ]


def _learners(programs: list[list[str]]) -> list[str]:
    if len(programs) == 1:
        return programs[0]
    argv = ["mpirun", "--allow-run-as-root"] if os.geteuid() == 0 else ["mpirun"]
    argv += ["-bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    argv += ["--mca", "btl_vader_single_copy_mechanism", "none"]
    for rank, program in enumerate(programs):
        argv += [":"] if rank else []
        argv += ["-np", "1", "-H", f"localhost:{len(programs)}", *program]
    return argv


@contextlib.contextmanager
def _started(argv: list[str], **env: str) -> Iterator[subprocess.Popen]:
    path = f"{ROOT / 'sandbox' / 'benchmarks'}:{ROOT}"
    process = subprocess.Popen(
        argv,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _rows(folder: pathlib.Path) -> list[dict[str, str]]:
    try:
        with open(folder / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return [row for row in rows if row["shared_share"]]  # the last may be half written


def _wait_for_rows(folder: pathlib.Path, count: int, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while sum(int(row["frames"]) > 0 for row in _rows(folder)) < count:
        if time.monotonic() > deadline:
            raise SystemExit("the run did not begin to learn")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _write(lines: list[str]) -> None:
    path = ROOT / "sandbox" / "speed.md"
    before, _, rest = path.read_text().partition(f"{MARK}\n")
    _, _, after = rest.partition(f"{MARK}\n")
    path.write_text("\n".join([f"{before}{MARK}", *lines, f"{MARK}\n{after}"]))


if __name__ == "__main__":
    sys.exit(main())
