"""What a process asks of the system."""

from impala_torch.machine import processes


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
