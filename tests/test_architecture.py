"""Imports point one way: each module may import what the architecture says, and no more."""

import ast
import pathlib
import re

import pytest

from tests.conftest import ROOT

# Module or package -> what of the project it may import; a package may import itself.
MAY_IMPORT = {
    # The algorithm, from what flows to what runs.
    "impala_torch.structures": set(),
    "impala_torch.vtrace": set(),
    "impala_torch.algorithms": {"vtrace", "structures", "flags", "agents"},
    "impala_torch.actor": {"flags", "agents", "environments", "endpoint", "acting"},
    "impala_torch.learner": {
        *("flags", "structures", "agents", "environments", "endpoint", "algorithms", "learning"),
        *("report", "machine", "evaluation"),
    },
    "impala_torch.local": {"flags", "learning", "learner", "machine", "evaluation"},
    # What serves it.
    "impala_torch.flags": set(),
    "impala_torch.machine": {"flags"},
    "impala_torch.agents": {"structures", "flags"},
    "impala_torch.environments": {"structures", "flags"},
    "impala_torch.acting": {"structures", "flags", "agents", "environments"},
    "impala_torch.endpoint": {"structures", "flags"},
    "impala_torch.learning": {"structures", "flags", "endpoint"},
    "impala_torch.report": {
        *("flags", "structures", "environments", "endpoint", "learning", "machine"),
    },
    "impala_torch.evaluation": {
        *("flags", "structures", "agents", "environments", "endpoint", "learning", "acting"),
        *("report", "machine"),
    },
    "impala_torch.measure": {
        *("flags", "structures", "agents", "environments", "endpoint", "algorithms", "learning"),
        *("acting", "learner", "report", "machine"),
    },
    "impala_torch.preflight": {"flags", "agents", "environments", "learning", "report"},
    "impala_torch.plot": {"flags", "report"},
    "impala_torch.tb": {"flags"},
    "impala_torch.runner": {"flags", "machine", "report"},
    "frontend": {"flags", "endpoint"},
    "experiment": {"__main__"},
    "impala_torch.__main__": {
        *("flags", "actor", "learner", "local", "evaluation", "learning", "machine", "report"),
        *("measure", "endpoint", "environments"),
    },
    "run_experiment_mm_raw": {"flags", "frontend"},
}


def sources() -> list[pathlib.Path]:
    folders = [ROOT / "impala_torch", ROOT / "frontend"]
    inside = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [*inside, ROOT / "experiment.py", ROOT / "run_experiment_mm_raw.py"]


def unit_of(path: pathlib.Path) -> str:
    """The key of MAY_IMPORT that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "impala_torch" else parts[0]


def imports_of(path: pathlib.Path) -> set[str]:
    """What of the project a file imports: names within impala_torch, or 'frontend'."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "frontend":
                found.add("frontend")
            elif parts[0] == "impala_torch" and parts[1] != "__version__":
                found.add(parts[1])
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    unit = unit_of(path)
    if unit == "impala_torch.__init__":
        assert not imports_of(path)
        return
    own = unit.split(".")[-1]
    assert imports_of(path) - {own} <= MAY_IMPORT[unit]


def test_horovod_and_mpi_are_imported_by_the_group_alone():
    for path in sources():
        mentions = [word for word in ("import horovod", "import MPI") if word in path.read_text()]
        assert not mentions or path.name == "group.py", path


def test_nothing_is_unpickled():
    for path in sources():
        text = path.read_text()
        for word in ("import pickle", "pickle.load", "cloudpickle", "allow_pickle", "eval("):
            assert word not in text.replace(".eval(", ""), f"{path}: {word}"
        if "torch.load(" in text:
            assert "weights_only=True" in text


def test_flags_are_declared_in_two_places_only():
    def mentioning(pattern: str) -> list[str]:
        found = [path for path in sources() if re.search(pattern, path.read_text())]
        return [str(path.relative_to(ROOT)) for path in found]

    assert mentioning(r"= flag\(") == ["impala_torch/flags/config.py", "frontend/flags.py"]
    assert mentioning("DEFINE_") == ["impala_torch/flags/command_line.py"]
