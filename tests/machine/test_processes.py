"""What a process asks of the system."""

import signal
import subprocess
import sys
import time

import pytest

from impala_torch.flags import exit_codes
from impala_torch.machine import processes
from tests.conftest import ROOT, STANDS_STILL


def test_as_many_files_may_be_open_as_the_system_allows(run_python):
    code = (
        "import resource\n"
        "from impala_torch.machine import processes\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, min(hard, 4096)))\n"
        "processes.allow_many_files()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "processes.warn_of_few_files(4000)\n"
        "processes.warn_of_few_files(4090)\n"
    )
    done = run_python("-c", code)
    assert done.stdout == "4096\n", done.stderr
    assert "may open 4096 files, and with 4090 actor(s) it needs about 4122" in done.stderr
    assert "4000" not in done.stderr


def test_last_words_of_a_log_and_of_one_that_is_gone(tmp_path):
    log = tmp_path / "actor.log"
    assert processes.last_words(log) == "    it cannot be read: No such file or directory"
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    assert processes.last_words(log).splitlines() == [f"    line {n}" for n in range(10, 20)]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_what_stands_still(first):
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", STANDS_STILL]
    process = subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        process.send_signal(signal.SIGINT)  # of the same key: mpirun tells of it too
        assert process.stdout.readline() == "asked\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == exit_codes.INTERRUPTED
        assert "SIGINT again: ending at once" in process.stderr.read()
    finally:
        process.kill()
