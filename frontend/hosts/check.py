"""The check before a start: what each host is like, and what to do about what is not as it must be.

A failure keeps a host from being used; a warning is only told.
"""

import concurrent.futures
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from frontend import commands
from frontend.hosts import facts
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError
from frontend.run_plan import ROOT, HostPlan, Plan
from frontend.tables import table
from impala_torch.endpoint.keys import is_loopback

_CLOCK_SECS = 5.0
_DISK_BYTES = 1 << 30
_SHM_BYTES = 64 << 20
_LISTEN_SECS = 15.0
_ALLREDUCE_SECS = 120.0
_SLOW_LINK_BYTES = 10e6  # a second: 100 Mbit/s


@dataclasses.dataclass
class Finding:
    """What is known of one host."""

    host: HostPlan
    facts: dict[str, Any] | None = None
    skew: float = 0.0  # its clock against ours, seconds
    links: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def check(run: Plan, out: TextIO = sys.stdout) -> int:
    """Checks every host of a run that does not run, and prints a table; the exit code."""
    with run.open_hosts() as hosts:
        findings = examine(run, hosts, {})
    lines = list(table(_rows(findings)))
    good = all(not finding.failures for finding in findings)
    if good and len(run.sets) > 1:
        words, good = _allreduce(run)
        lines.append(words)
    lines += _advice(findings)
    lines.append("fine: nothing keeps the run from starting" if good else "not fine: see above")
    print("\n".join(lines), file=out, flush=True)
    return 0 if good else 1


def before_start(
    run: Plan, hosts: Hosts, failed: Mapping[HostSpec, str], out: TextIO
) -> dict[HostSpec, str]:
    """Checks the hosts and tells what is amiss. Returns those that cannot be used, and why."""
    started = time.monotonic()
    findings = examine(run, hosts, failed)
    for line in _advice(findings):
        print(line, file=out, flush=True)
    bad = {one.host.spec: one.failures[0] for one in findings if one.failures}
    secs = time.monotonic() - started
    print(
        f"checked {len(findings)} host(s) in {secs:.1f} s: {len(findings) - len(bad)} can be used",
        file=out,
        flush=True,
    )
    return bad


def examine(run: Plan, hosts: Hosts, failed: Mapping[HostSpec, str]) -> list[Finding]:
    """Asks each host for its facts, and how it reaches its learners."""
    findings = {host.spec: Finding(host) for host in run.hosts if host.spec not in failed}
    ours = facts.gather({"learner": bool(run.here.learners)})

    def ask(spec: HostSpec) -> dict[str, Any]:
        host = findings[spec].host
        request = {
            "op": "facts",
            "learner": bool(host.learners),
            "ports": [
                [run.sets[index].learner.ip, run.sets[index].learner.port]
                for index in host.learners
            ],
            "directory": "~" if not spec.is_here else str(ROOT),
        }
        reply = hosts.ask(spec, request)
        # It named the time last of all, just before it answered.
        findings[spec].skew = reply["time"] - time.time()
        return reply

    for spec, reply in hosts.on_all(findings, ask).items():
        finding = findings[spec]
        if isinstance(reply, HostError):
            finding.failures.append(str(reply))
        else:
            finding.facts = reply
            _judge(finding, reply, ours)
    _measure_links(run, hosts, findings)
    return list(findings.values())


def _judge(finding: Finding, found: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    host, fail, warn = finding.host, finding.failures.append, finding.warnings.append
    missing = [name for name, version in found["packages"].items() if version is None]
    if host.spec.is_here and not host.learners and not host.actors:
        missing = []
    if missing:
        how = "--setup installs them" if not host.learners else "'docker/setup.sh train' does"
        fail(f"packages missing in {host.spec.python}: {', '.join(missing)}; {how}")
    other = [
        f"{name} {version} (here {ours['packages'][name]})"
        for name, version in found["packages"].items()
        if version and ours["packages"].get(name) and version != ours["packages"][name]
    ]
    if other:
        warn(f"other versions than here: {', '.join(other)}; install requirements.txt there")
    if found["impala_torch"] != ours["impala_torch"]:
        warn(
            f"impala_torch {found['impala_torch']}, and {ours['impala_torch']} here: --sync_code "
            "copies this one"
        )
    if found["python"].rsplit(".", 1)[0] != ours["python"].rsplit(".", 1)[0]:
        warn(f"Python {found['python']}, and {ours['python']} here: other packages may be needed")
    if not found["programs"]["tmux"] and host.windows:
        fail("tmux is not installed there: 'apt-get install tmux'")
    if not found["programs"]["orted"] and host.learners and not host.spec.is_here:
        fail("Open MPI is not installed there (no orted): 'docker/setup.sh train' does that")
    for ip, port, reason in found["taken_ports"]:
        fail(
            f"the learner's {ip}:{port} cannot be served there ({reason}): choose another tf_port, "
            "or end what uses it"
        )
    if abs(finding.skew) > _CLOCK_SECS:
        warn(f"its clock is {finding.skew:+.0f} s off: logs will not match; set up NTP")
    if found["disk_bytes"] is not None and found["disk_bytes"] < _DISK_BYTES:
        warn(f"only {found['disk_bytes'] / 1e6:.0f} MB of disk are free: clear some")
    if host.learners and found["shm_bytes"] is not None and found["shm_bytes"] < _SHM_BYTES:
        warn(f"/dev/shm has only {found['shm_bytes'] / 1e6:.0f} MB: give a container --shm-size=1g")


def _measure_links(run: Plan, hosts: Hosts, findings: Mapping[HostSpec, Finding]) -> None:
    """Measures latency and bandwidth from actors' hosts to their learners' ports."""
    measured: dict[int, list[HostSpec]] = {}
    for spec, finding in findings.items():
        for index in sorted({index for index, _ in finding.host.actors}):
            learner = run.sets[index].learner
            if finding.facts is not None and not is_loopback(learner.ip):
                measured.setdefault(index, []).append(spec)
    # One port of a learner's host says it of all: more would only share the link.
    seen: set[str] = set()
    pairs = {}
    for index, specs in measured.items():
        home = next(one for one in run.hosts if index in one.learners).spec
        good = findings.get(home)
        if good is None or good.failures or run.sets[index].learner.ip in seen:
            continue
        seen.add(run.sets[index].learner.ip)
        pairs[index] = (home, specs)
    if not pairs:
        return
    with concurrent.futures.ThreadPoolExecutor(len(pairs)) as listeners:
        waiting = []
        for index, (home, specs) in pairs.items():
            request = {**_link(run, index), "count": len(specs), "secs": _LISTEN_SECS}
            waiting.append(listeners.submit(hosts.ask, home, {"op": "listen", **request}))

        for index, (_, specs) in pairs.items():
            request = {"op": "measure", **_link(run, index)}
            address = run.sets[index].learner.address
            replies = hosts.on_all(specs, functools.partial(_ask, hosts, request))
            for spec, reply in replies.items():
                finding = findings[spec]
                if isinstance(reply, HostError):
                    finding.failures.append(
                        f"{reply}; open the port between the two, or write an ip of the learner "
                        "that this host reaches"
                    )
                    continue
                link = (address, reply["latency_secs"], reply["bytes_per_sec"])
                finding.links.append(link)
                if link[2] < _SLOW_LINK_BYTES:
                    finding.warnings.append(
                        f"the link to {address} carries {link[2] / 1e6:.1f} MB/s: fewer "
                        "actors there, or --relays=always"
                    )
        concurrent.futures.wait(waiting, timeout=_LISTEN_SECS)


def _ask(hosts: Hosts, request: Mapping[str, Any], spec: HostSpec) -> dict[str, Any]:
    return hosts.ask(spec, request)


def _link(run: Plan, index: int) -> dict[str, Any]:
    return {"ip": run.sets[index].learner.ip, "port": run.sets[index].learner.port}


def _allreduce(run: Plan) -> tuple[str, bool]:
    """An allreduce over the learners' hosts: what to say of it, and whether it worked."""
    places = [
        next(host.place for host in run.hosts if worker_set.index in host.learners)
        for worker_set in run.sets
    ]
    with tempfile.NamedTemporaryFile("w", prefix="ssh_config") as file:
        file.write(run.ssh_config())
        file.flush()
        mpi = dataclasses.replace(run.mpi, ssh_config=file.name)
        argv = commands.allreduce(run.sets, places, mpi)
        try:
            done = subprocess.run(
                argv,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=_ALLREDUCE_SECS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return (
                f"allreduce: no result in {_ALLREDUCE_SECS:.0f} s: the learners' hosts do not "
                "reach each other; --mpi_network names the network that they share",
                False,
            )
    for line in done.stdout.splitlines():
        if line.startswith('{"ranks"'):
            result = json.loads(line)
            return (
                f"allreduce of {result['bytes'] / 1e6:.1f} MB over {result['ranks']} learners: "
                f"{1000 * result['secs']:.1f} ms",
                True,
            )
    last = [line for line in done.stderr.splitlines() if line.strip(" -")][-3:]
    return f"allreduce failed (exit code {done.returncode}): {' / '.join(last)}", False


def _rows(findings: Sequence[Finding]) -> list[Sequence[str]]:
    heading = "host as SSH Python torch cores GPUs clock disk shm latency bandwidth"
    rows: list[Sequence[str]] = [heading.split()]
    for finding in findings:
        host, found = finding.host, finding.facts
        roles = [f"{len(host.learners)} learner(s)"] * bool(host.learners)
        roles += [f"{len(host.actors)} actor(s)"] * bool(host.actors)
        role = ", ".join(roles) or "frontend"
        if found is None:
            rows.append([host.spec.name, role, "failed", *[""] * 9])
            continue
        links = finding.links
        rows.append(
            [
                host.spec.name,
                role,
                "here" if host.spec.is_here else "works",
                found["python"],
                found["packages"]["torch"] or "missing",
                str(found["cores"]),
                str(len(found["gpus"])),
                f"{finding.skew:+.1f} s",
                _gigabytes(found["disk_bytes"]),
                _gigabytes(found["shm_bytes"]),
                f"{1000 * max(link[1] for link in links):.1f} ms" if links else "-",
                f"{min(link[2] for link in links) / 1e6:.0f} MB/s" if links else "-",
            ]
        )
    return rows


def _advice(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        name = finding.host.spec.name
        lines += [f"failed: {name}: {words}" for words in finding.failures]
        lines += [f"warning: {name}: {words}" for words in finding.warnings]
    return lines


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f} GB"
