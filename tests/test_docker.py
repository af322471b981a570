"""What sets machines up: its three targets, the images' files, and an actor that trains from it."""

import os
import pathlib
import pwd
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from absl import flags

from impala_torch.flags import command_line
from impala_torch.flags import config as config_lib
from impala_torch.flags.addresses import parse_address
from tests.conftest import ROOT
from tests.test_experiment import CARTPOLE, frames_of

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())
DOCKERFILES = [DOCKER / "Dockerfile.learner", DOCKER / "Dockerfile.actor"]
JOBS = ("learner", "actor-0", "actor-1")


def pins(path: pathlib.Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def set_up(
    what: str,
    timeout: float = 60,
    user: str = "",
    folder: pathlib.Path = DOCKER,
    **variables: str,
):
    """Runs setup.sh of ``folder``; as another user where one is named."""
    account = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    return subprocess.run(
        [folder / "setup.sh", what],
        env={"PATH": os.environ["PATH"], "HOME": str(pathlib.Path.home()), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **account,
    )


def test_an_actor_has_the_versions_of_everyone():
    everyone, actors = pins(ROOT / "requirements.txt"), pins(DOCKER / "requirements-actor.txt")
    assert actors.items() <= everyone.items()
    assert not {"tensorboard", "paramiko", "rich"} & set(actors)


def test_setup_says_what_is_wrong(tmp_path):
    done = set_up("actors", VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "'actors' is none of 'train', 'test' and 'actor'" in done.stderr


def programs(folder: pathlib.Path, *without: str, **scripts: str) -> str:
    """A PATH of what setup.sh uses and no more, but for ``without``; some are scripts of ours."""
    folder.mkdir()
    for name in (
        "bash",
        "dirname",
        "mkdir",
        "tail",
        "grep",
        "cut",
        "sha256sum",
        "cat",
        "tmux",
        "id",
    ):
        if name not in without:
            (folder / name).symlink_to(shutil.which(name) or name)
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_an_actors_host_without_tmux_or_python_is_told(tmp_path):
    venv = str(tmp_path / "venv")
    real = f'exec {sys.executable} "$@"'
    path = programs(tmp_path / "1", "tmux", python3=real)
    done = set_up("actor", PATH=f"{path}:/nowhere", VENV=venv)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "tmux is missing" in done.stderr
    done = set_up("actor", PATH=programs(tmp_path / "2"), VENV=venv)
    assert "there is no 'python3' here" in done.stderr


def test_an_actors_python_that_cannot_make_an_environment_is_told(tmp_path):
    """As Debian's does without python3-venv."""
    script = f"""case "$1 $2" in
    "-c "*) exec {sys.executable} "$@";;
    *) echo 'ensurepip is not available' >&2; exit 1;;
    esac"""
    path = programs(tmp_path / "bin", python3=script)
    done = set_up("actor", PATH=path, VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "have root install the package python3-venv" in done.stderr
    old = 'case "$1" in -c) exit 1;; --version) echo Python 3.9.2;; esac'
    path = programs(tmp_path / "old", python3=old)
    done = set_up("actor", PATH=path, VENV=str(tmp_path / "venv"))
    assert "Python 3.9.2 is too old" in done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_made_of_what_there_is(path):
    text = path.read_text().replace("\\\n", " ")
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    assert copied
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
    target = re.search(r"docker/setup\.sh (\w+)$", text, re.MULTILINE)
    assert target
    assert target[1] == {"Dockerfile.learner": "train", "Dockerfile.actor": "actor"}[path.name]
    # Whatever else setup.sh reads must have been copied before.
    before = text[: target.start()]
    script = (DOCKER / "setup.sh").read_text()
    read = set(re.findall(r"\$root/((?:docker/)?requirements[\w-]*\.txt)", script))
    needed = {
        "train": read - {"docker/requirements-actor.txt"},
        "actor": {"docker/requirements-actor.txt"},
    }
    for name in needed[target[1]]:
        assert name in before, name
    assert (path.parent / f"{path.name}.dockerignore").exists()


def command_of(service: str) -> list[str]:
    """A service's command line, with the defaults of its variables."""
    said = COMPOSE["services"][service]
    words = [*said["entrypoint"], *said["command"]]
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in words]


def parsed(service: str) -> config_lib.Config:
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.parse_flags(command_of(service)[1:], values)
    return command_line.from_flags(values)


@pytest.mark.parametrize("service", JOBS)
def test_compose_commands_are_ones(service):
    program, script = command_of(service)[:2]
    assert (program, script) == (".venv/bin/python", "experiment.py")
    config = parsed(service)
    name, _, task = service.partition("-")
    assert (config.job_name, config.task) == (name, int(task or 0))
    host, port = parse_address(config.learner_host, "compose")
    assert host in COMPOSE["services"]
    assert [parse_address(one, "compose")[0] for one in config.actors] == list(JOBS[1:])
    assert port > 0
    # All but which process it is must be the same: an actor that differs would be refused.
    same = {"job_name": "learner", "task": 0}
    assert config.replace(**same) == parsed("learner")


def test_compose_mounts_what_its_commands_name():
    config = parsed("learner")
    volumes = {
        service: dict(reversed(one.split(":")[:2]) for one in said.get("volumes", []))
        for service, said in COMPOSE["services"].items()
    }
    for service in JOBS:
        assert volumes[service][str(pathlib.Path(config.key_file).parent)] == "keys"
    assert volumes["learner"][config.logdir] == "run"
    assert set(COMPOSE["volumes"]) == {"keys", "run"}
    (*_, make_keys) = COMPOSE["services"]["keys"]["entrypoint"]
    assert f"-m impala_torch.endpoint.keys {config.key_file}" in make_keys
    assert volumes["keys"] == {"/keys": "keys"}


@pytest.mark.parametrize("service", [*JOBS, "keys"])
def test_compose_builds_from_what_there_is(service):
    build = COMPOSE["services"][service]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    text = (context / build["dockerfile"]).read_text()
    for name in build["args"]:
        assert f"ARG {name}=" in text
    if service != "keys":
        assert COMPOSE["services"][service]["depends_on"]["keys"]["condition"] == (
            "service_completed_successfully"
        )


def test_the_readme_names_what_there_is():
    text = (DOCKER / "README.md").read_text()
    for name in re.findall(r"docker/[\w.-]*\w", text):
        assert (ROOT / name).exists(), name
    for variable in re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE):
        assert variable in (DOCKER / "setup.sh").read_text()
    compose = (DOCKER / "docker-compose.yml").read_text()
    for variable in re.findall(r"\b([A-Z]+)=\w", text):
        if variable not in ("BASE", "OPERATIONS"):
            assert f"${{{variable}:-" in compose, variable


@pytest.fixture
def plain_folder(tmp_path):
    """A folder that an ordinary user may write to."""
    for parent in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


@pytest.mark.slow
def test_an_actor_set_up_without_root_trains(start, free_port, plain_folder):
    venv, logdir = plain_folder / "venv", plain_folder / "run"
    variables = {"VENV": str(venv), "HOME": str(plain_folder)}
    # Root's own interpreter may be out of an ordinary user's reach.
    user = "nobody" if os.geteuid() == 0 and pathlib.Path("/usr/bin/python3").exists() else ""
    if user:
        variables["PYTHON"] = "/usr/bin/python3"
    # Nor need the project be within it.
    folder = plain_folder / "project" / "docker"
    shutil.copytree(DOCKER, folder)
    shutil.copy(ROOT / "requirements.txt", folder.parent)
    first = set_up("actor", timeout=600, user=user, folder=folder, **variables)
    assert first.returncode == 0, first.stderr
    again = set_up("actor", timeout=10, user=user, folder=folder, **variables)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("\n") == 1  # nothing was done

    find = (
        "import importlib.util as u; "
        "print([n for n in ('horovod', 'mpi4py', 'tensorboard', 'torch') if u.find_spec(n)])"
    )
    python = str(venv / "bin" / "python")
    found = subprocess.run([python, "-I", "-c", find], capture_output=True, text=True, check=True)
    assert found.stdout == "['torch']\n"

    host = f"localhost:{free_port()}"
    shared = [*CARTPOLE, f"--learner_host={host}", "--total_environment_frames=30000"]
    program = str(ROOT / "experiment.py")
    actor = start([python, program, "--job_name=actor", "--task=0", *shared], cwd=plain_folder)
    learner = start(
        [sys.executable, program, "--job_name=learner", "--task=0", f"--logdir={logdir}", *shared]
    )
    assert learner.wait(timeout=300) == 0
    assert actor.wait(timeout=60) == 0
    assert frames_of(logdir) >= 30000
