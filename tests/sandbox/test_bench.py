"""The benchmarks run: what they measure is another matter, and no test's."""

import pytest

# Those that train take minutes, and the others what these take.
PARTS = "sampler,acting,learning,endpoint"


@pytest.mark.slow
def test_each_part_of_the_bench_makes_its_table(run_python):
    argv = ["sandbox/benchmarks/bench.py", "--brief", "--only", PARTS]
    done = run_python(*argv, timeout=600)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\n\n|")[1:]
    assert len(tables) == len(PARTS.split(","))
    for table in tables:
        head, _, *rows = [
            line.count("|") for line in f"|{table}".strip().splitlines() if "|" in line
        ]
        assert rows
        assert set(rows) == {head}
