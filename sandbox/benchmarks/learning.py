"""Which settings learn fastest: a list of them, each with several seeds, one run after the other.

    python sandbox/benchmarks/learning.py sandbox/benchmarks/pong.json --out=runs/pong

The list is a JSON file:

    {"flags": [...],                     what all runs have in common
     "settings": {"NAME": [...], ...},   what each setting adds
     "seeds": [1, 2, 3],
     "until": {"frames": 3e6, "return": 20.5},   a run ends where it is at either
     "give_up": [[1.2e6, -19]],          at so many frames with a mean return below that
     "scores": [-19, -10, 0, 10, 18]}    rows of the table

All settings have their first seed before any has its second. A second call goes on where the first
was stopped, by Ctrl-C or otherwise: what has ended stays, what was under way goes on from its
checkpoint. --table prints what is there, as Markdown; --picture=FILE draws it. Choose settings with
other seeds than those that you report.
"""

import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from impala_torch.report import rows  # noqa: E402

_POLL_SECS = 2.0
_END_SECS = 120.0  # that a run may take to write its last checkpoint


class Point(NamedTuple):
    """A row of a run's metrics.csv."""

    frames: float
    minutes: float
    score: float  # mean raw return of the last games
    frames_per_sec: float
    games: int = rows.GAMES  # that the score is the mean of


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=pathlib.Path, help="JSON file")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--picture", type=pathlib.Path, help="only draw what is there")
    args = parser.parse_args()
    todo = json.loads(args.settings.read_text())
    if not args.table and not args.picture:
        # A shell ignores Ctrl-C for what it starts in the background, and children inherit that.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            for seed in todo["seeds"]:
                for name in todo["settings"]:
                    run(todo, name, seed, args.out / f"{name}-{seed}")
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
    if args.picture:
        return draw(todo, args.out, args.picture)
    print("\n".join(table(todo, args.out)))
    return 0


def run(todo: Mapping[str, Any], name: str, seed: int, folder: pathlib.Path) -> None:
    """Trains one setting with one seed, unless that has ended, and writes down why it ended."""
    ended = folder / "ended.json"
    if ended.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, ROOT / "experiment.py", f"--logdir={folder}", f"--seed={seed}"),
        *("--save_checkpoint_secs=120", *todo["flags"], *todo["settings"][name]),
    ]
    with open(folder / "output.log", "a") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        why = ""
        try:
            while child.poll() is None and not why:
                time.sleep(_POLL_SECS)
                why = reason(todo, points(folder))
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(_END_SECS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
    if not why and child.returncode:
        raise SystemExit(f"{name}, seed {seed} failed: see {folder / 'output.log'}")
    ended.write_text(json.dumps({"why": why or "its frames"}))
    print(f"{name}, seed {seed}: {why or 'its frames'}; {_last(points(folder))}")


def reason(todo: Mapping[str, Any], so_far: Sequence[Point]) -> str:
    """Why a run is to end now; empty where it is not."""
    if not so_far:
        return ""
    last, until = so_far[-1], todo.get("until", {})
    if last.frames >= until.get("frames", float("inf")):
        return "its frames"
    scores = [point.score for point in full(so_far)]
    if scores and full([last]) and last.score >= until.get("return", float("inf")):
        return "its return"
    for frames, least in todo.get("give_up", []):
        if scores and last.frames >= frames and max(scores) < least:
            return f"given up: below {least} at {frames:,.0f} frames"
    return ""


def points(folder: pathlib.Path) -> list[Point]:
    """The rows of a run that have a mean return."""
    return [
        Point(
            *(row["frames"], 60 * row["hours"], row[rows.RETURN], row["frames_per_sec"]),
            games=rows.games_in(row),
        )
        for row in rows.read(folder / "metrics.csv")
        if rows.RETURN in row
    ]


def full(so_far: Sequence[Point]) -> list[Point]:
    """Those whose score is of as many games as a run is judged by."""
    return [point for point in so_far if point.games >= rows.GAMES]


def table(todo: Mapping[str, Any], out: pathlib.Path) -> list[str]:
    """Millions of frames (minutes) to each score, by setting and seed, as Markdown."""
    scores = todo["scores"]
    heads = ["setting", "seed", *(f"{score:g}" for score in scores), "last", "lowest after", "K/s"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name in todo["settings"]:
        reached: list[float] = []
        for seed in todo["seeds"]:
            so_far = points(out / f"{name}-{seed}")
            if not so_far:
                continue
            judged, cells = full(so_far), []
            for score in scores:
                at = next((one for one in judged if one.score >= score), None)
                cells.append(f"{at.frames / 1e6:.2f} ({at.minutes:.1f})" if at else "")
            first = next((i for i, one in enumerate(judged) if one.score >= scores[-1]), None)
            reached.append(float("inf") if first is None else judged[first].frames)
            lowest = "" if first is None else f"{min(p.score for p in judged[first:]):.1f}"
            speed = statistics.median(point.frames_per_sec for point in so_far) / 1e3
            lines.append(_line([name, str(seed), *cells, _last(so_far), lowest, f"{speed:.1f}"]))
        if len(reached) > 1:
            middle = statistics.median(reached) / 1e6
            lines.append(f"{name}: {scores[-1]:g} after {middle:.2f} M frames (median)")
    return lines


def draw(todo: Mapping[str, Any], out: pathlib.Path, picture: pathlib.Path) -> int:
    """The curves, a colour a setting, by ``impala_torch.plot``."""
    names = [(name, seed) for seed in todo["seeds"] for name in todo["settings"]]
    there = [(name, seed) for name, seed in names if points(out / f"{name}-{seed}")]
    folders = [str(out / f"{name}-{seed}") for name, seed in there]
    labels = "--labels=" + ",".join(f"{name} {seed}" for name, seed in there)
    command = [sys.executable, "-m", "impala_torch.plot", *folders, "--group=none", labels]
    return subprocess.run([*command, f"--out={picture}"], cwd=ROOT, check=False).returncode


def _last(so_far: Sequence[Point]) -> str:
    """The last score and the millions of frames then; of how many games, where they are few."""
    if not so_far:
        return "no game has ended"
    last = so_far[-1]
    few = "" if full([last]) else f" ({last.games} games)"
    return f"{last.score:.1f}{few} at {last.frames / 1e6:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
