"""What the documents say is there, is there."""

import dataclasses
import re

import pytest
from absl import flags

from frontend import flags as frontend_flags
from frontend.plan import __main__ as plan
from impala_torch import tb
from impala_torch.agents import ZOO
from impala_torch.flags import command_line, config
from impala_torch.plot import __main__ as plot
from impala_torch.runner import __main__ as runner
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "sandbox").glob("*.md"))]


FIELDS = (*dataclasses.fields(config.Config), *dataclasses.fields(frontend_flags.Options))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_each_flag_is_in_the_readme_with_its_help(field):
    row = next(line for line in README.splitlines() if line.startswith(f"| `--{field.name}` |"))
    text = field.metadata["help"].replace("<", "&lt;").replace(">", "&gt;")
    assert text in row


def test_each_agent_is_in_the_readme():
    for name in ZOO:
        assert f"`{name}`" in README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_flags_and_files_that_exist(path):
    values = flags.FlagValues()
    command_line.define_flags(values)
    known = set(values) | set(flags.FLAGS)
    if "workers_csv_path" not in flags.FLAGS:
        frontend_flags.define_flags()
        known |= set(flags.FLAGS)
    for parser in (runner.parser(), plan.parser(), plot.parser(), tb.parser()):
        known |= {word.lstrip("-") for one in parser._actions for word in one.option_strings}
    # Of mpirun, make, pip and the like.
    others = {
        "allow-run-as-root",
        "mca",
        "helpfull",
        "logdir",
        "mpi",
        "prefix",
        "secs",
        "senders",
        "quick",
        "simulate",
        "only",
        "write",
    }
    text = path.read_text()
    for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text):
        assert name in known | others, f"--{name}"
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target


def test_the_makefile_has_the_commands_that_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_goes_wrong_is_held_by_tests_that_exist():
    text = (ROOT / "sandbox" / "reliability.md").read_text()
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", text)
    assert len(named) > 40
    for path, name in named:
        source = (ROOT / (path or "tests/endpoint/test_peers.py")).read_text()
        assert f"def {name}(" in source, f"{path}::{name}"
