"""Freed memory stays with the process: counted in page faults, of a process of its own."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

COUNT = """
import resource
import torch
from impala_torch.machine import malloc

if {keep}:
    malloc.keep_freed()
torch.set_num_threads(1)

def use():
    torch.ones(48 << 20, dtype=torch.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):
    use()
before = faults()
for _ in range(20):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of glibc")
def test_what_an_update_frees_the_next_one_takes():
    def faults(keep):
        done = subprocess.run(
            [sys.executable, "-c", COUNT.format(keep=keep)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    # Above 32 MB malloc always maps anew: 20 x 48 MB are 240,000 pages, or 480 huge ones.
    assert faults(keep=True) < 5 < faults(keep=False)
