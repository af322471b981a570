"""Cores that a process may use: real affinities, control groups as files."""

import os
import subprocess
import sys

import pytest

from impala_torch.machine import cores
from tests.conftest import ROOT


def test_an_affinity_is_kept_to():
    first = min(os.sched_getaffinity(0))
    code = "from impala_torch.machine import cores; print(cores.usable())"
    command = ["taskset", "-c", str(first), sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
    assert 1 <= cores.usable() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "what"}, 64),
        ({}, 64),
    ],
)
def test_a_quota_is_kept_to(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cores.usable(tmp_path) == expected
