"""Imports point one way: each module may import what the architecture says, and no more."""

import ast
import pathlib
import re

import pytest

from tests.conftest import ROOT

# Module or package -> what of the project it may import; a package may import itself.
MAY_IMPORT = {
    "impala_torch.presets": set(),
    "impala_torch.config": {"presets"},
    "impala_torch.command_line": {"config", "presets"},
    "impala_torch.structures": set(),
    "impala_torch.vtrace": set(),
    "impala_torch.optimizers": set(),
    "impala_torch.stacking": set(),
    "impala_torch.frames": set(),
    "impala_torch.processes": set(),
    "impala_torch.losses": {"vtrace", "structures", "config"},
    "impala_torch.plugins": {"config"},
    "impala_torch.agents": {"structures", "config", "plugins"},
    "impala_torch.environments": {"structures", "config", "plugins"},
    "impala_torch.endpoint": {"structures", "config", "frames"},
    "impala_torch.feed": {"structures", "endpoint"},
    "impala_torch.group": {"config"},
    "impala_torch.checkpoint": {"config"},
    "impala_torch.metrics": {"structures"},
    "impala_torch.wandb_log": {"config"},
    "impala_torch.rundir": {"config", "checkpoint", "protocol", "wandb_log"},
    "impala_torch.preflight": {"config", "command_line", "agents", "environments", "checkpoint"},
    "impala_torch.actor": {
        *("config", "structures", "agents", "environments", "endpoint", "stacking"),
    },
    "impala_torch.devices": {"config"},
    "impala_torch.training_state": {"config", "checkpoint", "group"},
    "impala_torch.bottleneck": set(),
    "impala_torch.network": set(),
    "impala_torch.memory": set(),
    "impala_torch.results": {"config", "metrics", "checkpoint", "environments", "protocol"},
    "impala_torch.progress": {
        "results",
        *("bottleneck", "network", "wandb_log"),
        *("config", "metrics", "structures", "endpoint", "group", "training_state"),
    },
    "impala_torch.learner": {
        *("config", "structures", "agents", "environments", "endpoint", "stacking", "losses"),
        *("optimizers", "group", "devices", "training_state", "progress", "rundir", "actor"),
        *("memory", "evaluation", "feed"),
    },
    "impala_torch.local": {
        *("config", "command_line", "group", "learner", "processes", "evaluation"),
    },
    "impala_torch.sample": {"config", "environments", "actor"},
    "impala_torch.protocol": {"config", "environments"},
    "impala_torch.evaluation": {
        *("config", "structures", "agents", "environments", "endpoint", "checkpoint", "actor"),
        *("metrics", "protocol", "processes", "command_line"),
    },
    "impala_torch.allreduce": {"config", "group"},
    "impala_torch.measure": {
        *("config", "structures", "agents", "environments", "endpoint", "losses", "group"),
        *("actor", "learner", "progress", "sample", "network", "command_line"),
    },
    "impala_torch.plot": {"config"},
    "impala_torch.tb": {"config"},
    "impala_torch.runner": {"config", "processes"},
    "frontend": {"config", "command_line", "endpoint"},
    "experiment": {
        *("config", "actor", "learner", "local", "evaluation", "group", "processes", "rundir"),
        *("sample", "endpoint", "command_line"),
    },
    "run_experiment_mm_raw": {"config", "command_line", "frontend"},
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

    assert mentioning(r"= flag\(") == ["impala_torch/config.py", "frontend/flags.py"]
    assert mentioning("DEFINE_") == ["impala_torch/command_line.py"]
