"""The library as its users use it: every example of sandbox/api.md, and sandbox/examples/a2c.py."""

import importlib.util
import json
import os
import pathlib
import re
import sys

import gymnasium
import pytest
import torch

from impala_torch import environments
from impala_torch.agents import Agent, make_agent
from impala_torch.flags import plugins
from impala_torch.flags.config import default_logdir
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.learning.group import Group
from impala_torch.structures import EnvironmentSpec, ObservationSpec
from tests.conftest import ROOT

PAGE = (ROOT / "sandbox" / "api.md").read_text()
SECTIONS = {
    section.split("\n", 1)[0]: re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    for section in PAGE.split("\n## ")[1:]
}
# Files that the page names: path -> the block that follows.
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.M | re.S))
COMMANDS = re.findall(r"^```\npython (experiment\.py .*?)^```", PAGE, re.M | re.S)
A2C = ROOT / "sandbox" / "examples" / "a2c.py"
VECTOR = EnvironmentSpec(ObservationSpec((4,), "float32", 1), 2)
ATARI = EnvironmentSpec(ObservationSpec((84, 84), "uint8", 4), 6)


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch):
    """Modules, levels and paths of one test are not seen by the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mypackage", "shadowed"):
            del sys.modules[name]
    for name in ("MyEnv-v0", "Fails-v0", "Nowhere-v0"):
        gymnasium.registry.pop(name, None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the page's ``mypackage``, and a function that adds files."""

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    for name, text in FILES.items():
        write(name, text)
    monkeypatch.chdir(tmp_path)
    return write


def load_a2c():
    spec = importlib.util.spec_from_file_location("a2c", A2C)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["a2c"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


# --- the page -----------------------------------------------------------------------------------


def test_the_page_has_an_example_of_each_kind():
    assert {title: len(blocks) for title, blocks in SECTIONS.items() if blocks} == {
        "An agent": 2,
        "An environment": 2,
        "A loss": 3,
        "Several learners": 1,
    }
    assert set(FILES) == {"mypackage/__init__.py", "mypackage/mymodule.py"}
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if blocks])
def test_the_pages_examples_run(title):
    torch.manual_seed(0)
    names = {"__name__": f"mypackage.{title}"}  # one after the other, as the page says
    for number, block in enumerate(SECTIONS[title]):
        exec(compile(block, f"sandbox/api.md, {title}, {number}", "exec"), names)
    agents = [it for it in names.values() if isinstance(it, type) and issubclass(it, Agent)]
    for agent in {*agents} - {Agent}:
        agent(ATARI if agent.image else VECTOR)
    if title == "A loss":
        grads = [parameter.grad for parameter in names["agent"].parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        assert any(grad.abs().sum() > 0 for grad in grads)


def test_what_the_page_says_to_import_is_there():
    rows = re.findall(r"^\| `(impala_torch[\w.]*)`? \| (.*?) \|", PAGE, re.M)
    assert len(rows) > 8
    for module, cell in rows:
        for name in re.findall(r"`(\w+)", cell):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


# --- agents and environments by name ------------------------------------------------------------


def test_an_agent_and_an_environment_of_the_working_directory(here):
    agent = make_agent("mypackage.mymodule:MyAgent", VECTOR)
    assert type(agent).__name__ == "MyAgent"
    environment = environments.make_environment("mypackage:MyEnv-v0", 3, seed=1)
    assert environment.spec == EnvironmentSpec(ObservationSpec((2,), "float32", 1), 2)
    seen = environment.reset()
    for _ in range(20):  # who chooses the side that is shown always wins
        seen = environment.step((seen.observation[:, 0] > 0).astype("int64"))
        assert seen.reward.tolist() == [1.0, 1.0, 1.0]
    environment.close()


def test_what_is_installed_is_not_hidden_by_the_working_directory(here, tmp_path):
    here("json.py", "raise RuntimeError('the wrong one')")
    here("shadowed.py", "value = 'working directory'")
    assert plugins.import_module("agent_name", "json:A") is json
    assert plugins.import_module("agent_name", "shadowed:A").value == "working directory"


def test_the_trial_leaves_the_runs_random_numbers_alone(here):
    torch.manual_seed(3)
    expected = make_agent("mypackage.mymodule:MyAgent", VECTOR).torso[0].weight, torch.rand(2)
    torch.manual_seed(3)
    factory = sys.modules["mypackage.mymodule"].MyAgent
    assert torch.equal(factory(VECTOR).torso[0].weight, expected[0])
    assert torch.equal(torch.rand(2), expected[1])


def test_paths_of_a_run_hold_no_colon_and_no_slash():
    parts = pathlib.PurePath(default_logdir("my.package:ns/MyEnv-v0")).parts
    assert parts[:2] == ("logs", "my.package-ns-MyEnv-v0")


AGENTS = """
import torch
from torch import nn
from impala_torch.agents import Agent
from impala_torch.structures import AgentOutput

class Whole(Agent):
    image = False

    def __init__(self, spec, *args):
        super().__init__(spec, *args)
        self.torso = nn.Sequential(nn.Linear(spec.observation.shape[0], 8), nn.ReLU())
        self.add_heads(8)

class Normed(Agent):
    image = False

    def __init__(self, spec, *args):
        super().__init__(spec, *args)
        self.torso = nn.Sequential(nn.Linear(spec.observation.shape[0], 8), nn.BatchNorm1d(8))
        self.add_heads(8)

class Headless(Agent):
    image = False

class Deaf(Whole):
    def __init__(self, spec):
        super().__init__(spec)

class WrongShape(Whole):
    def forward(self, inputs, state):
        outputs, state = super().forward(inputs, state)
        return AgentOutput(outputs.policy_logits, outputs.baseline[..., None]), state

class NotReset(Whole):
    state_size = 1

    def forward(self, inputs, state):
        outputs, _ = super().forward(inputs, state)
        counts = state[:, 0] + torch.arange(1.0, len(inputs.done) + 1)[:, None]
        return outputs._replace(baseline=counts), counts[-1][:, None]

class Fails(Whole):
    def forward(self, inputs, state):
        return None / 2

class OfImages(Whole):
    image = True

def function(): ...
"""
BAD_AGENTS = {
    "mypackage.agents:Other": r"mypackage/agents.py has no 'Other'",
    "mypackage.agents:function": r"'function' of .*agents.py is no subclass of impala_torch",
    "mypackage.agents:nn": r"'nn' of .*agents.py is no subclass",
    "mypackage.agents:Normed": r"one by one.*batch norm",
    "mypackage.agents:NotReset": r"must set the state back where done is true",
    "mypackage.agents:Headless": r"must end with self.add_heads",
    "mypackage.agents:Deaf": r"cannot be made: TypeError.*takes 2 positional",
    "mypackage.agents:WrongShape": r"baseline must be torch.float32 \[3, 2\].*\[3, 2, 1\]",
    "mypackage.agents:Fails": r"fails on a trial: .*agents.py, line 45: TypeError",
    "mypackage.agents:OfImages": r"observations are vectors: its class says image = True",
    "mypackage.absent:A": r"there is no module 'mypackage.absent', neither in /.*put it there",
    "nopackage.absent:A": r"there is no module 'nopackage'",
    "mypackage.needs:A": r"needs.py, line 2: ModuleNotFoundError: No module named 'no_such'",
    "mypackage.syntax:A": r"syntax.py, line 1: SyntaxError: '\(' was never closed$",
    "mypackage.raises:A": r"raises.py, line 1: ValueError: in two lines$",
    "mypackage/agents.py:A": r"is not of the form mypackage.mymodule:MyAgent",
    "mypackage.agents:A:B": r"is not of the form",
    ":A": r"is not of the form",
}
BROKEN = {
    "mypackage/agents.py": AGENTS,
    "mypackage/needs.py": "\nimport no_such",
    "mypackage/syntax.py": "x = (",
    "mypackage/raises.py": "raise ValueError('in two\\nlines')",
    "mypackage/envs.py": (
        "import gymnasium\n"
        "class Fails(gymnasium.Env):\n"
        "    def __init__(self): self.x = {}['absent']\n"
        "gymnasium.register('Fails-v0', Fails)\n"
        "gymnasium.register('Nowhere-v0', 'mypackage.envs:Nowhere')\n"
    ),
}


@pytest.mark.parametrize("name", BAD_AGENTS)
def test_mistakes_in_an_agent_are_told(here, name):
    for path, text in BROKEN.items():
        here(path, text)
    with pytest.raises(UserError, match=BAD_AGENTS[name]) as caught:
        make_agent(name, VECTOR)
    assert str(caught.value).startswith(f"--agent_name={name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("mypackage:MyEnv-v1", r"importing 'mypackage' registers no 'MyEnv-v1'"),
        ("mypackage.absent:MyEnv-v0", r"there is no module 'mypackage.absent'"),
        ("mypackage.needs:MyEnv-v0", r"needs.py, line 2: .*'no_such'"),
        ("mypackage.envs:Fails-v0", r"cannot be made: .*envs.py, line 3: KeyError: 'absent'"),
        ("mypackage.envs:Nowhere-v0", r"cannot be made: AttributeError: .*'Nowhere'"),
        ("mypackage:a:MyEnv-v0", r"is not of the form mypackage.mymodule:MyEnv-v0"),
    ],
)
def test_mistakes_in_an_environment_are_told(here, level, said):
    for path, text in BROKEN.items():
        here(path, text)
    with pytest.raises(UserError, match=said) as caught:
        environments.environment_spec(level)
    assert str(caught.value).startswith(f"--level_name={level}")


def test_an_agent_without_a_torso_can_act(here):
    here(
        "mypackage/whole.py",
        "import torch\n"
        "from impala_torch.agents import Agent\n"
        "from impala_torch.structures import AgentOutput\n"
        "class Constant(Agent):\n"
        "    def forward(self, inputs, state):\n"
        "        zeros = torch.zeros(*inputs.reward.shape, self.num_actions)\n"
        "        return AgentOutput(zeros, zeros[..., 0]), state\n",
    )
    agent = make_agent("mypackage.whole:Constant", ATARI, torch.bfloat16).for_acting()
    assert type(agent).__name__ == "Constant"


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pages_command_trains_an_agent_and_an_environment_of_ones_own(run_python, here):
    argv = COMMANDS[1].split()
    quick = (
        *("--total_environment_frames=20000", "--num_envs=8", "--batch_size=8", "--epsilon=0.01"),
        *("--unroll_length=10", "--num_actors=1", "--learning_rate=0.005", "--entropy_cost=0.01"),
    )
    done = run_python(ROOT / argv[0], *argv[1:], *quick, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    runs = list(pathlib.Path("logs/mypackage-MyEnv-v0").iterdir())
    assert len(runs) == 1
    flags = checkpoint.restore(runs[0])["config"]
    assert flags["agent_name"] == "mypackage.mymodule:MyAgent"
    assert flags["level_name"] == "mypackage:MyEnv-v0"
    # The names are in the checkpoint; whole episodes are those of a policy that has learned.
    test = ("--mode=test", f"--logdir={runs[0]}", "--test_num_episodes=40")
    tested = run_python(ROOT / "experiment.py", *test, cwd=os.getcwd())
    assert tested.returncode == 0, tested.stderr
    assert float(re.search(r"mean ([\d.]+)", tested.stdout)[1]) > 0.9
    refused = run_python(
        *(ROOT / argv[0], *argv[1:], f"--logdir={runs[0]}", "--agent_name=MLPAgent"),
        cwd=os.getcwd(),
    )
    assert refused.returncode == 2
    assert "trained with --agent_name=mypackage.mymodule:MyAgent, not MLPAgent" in refused.stderr


@pytest.mark.slow
def test_a_mistake_is_one_sentence_of_every_entry_point(run_python, here):
    here("mypackage/needs.py", "\nimport no_such")
    for program in ([ROOT / "experiment.py"], ["-m", "impala_torch.preflight"]):
        flags = ("--agent_name=mypackage.needs:A", "--level_name=CartPole-v1")
        done = run_python(*program, *flags, cwd=os.getcwd())
        assert done.returncode == 2
        assert "needs.py, line 2: ModuleNotFoundError: No module named 'no_such'" in done.stderr
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr


# --- a2c.py -------------------------------------------------------------------------------------


def test_n_step_returns_are_what_they_are_said_to_be():
    steps, envs = 5, 3
    generator = torch.Generator().manual_seed(5)
    rewards, values = torch.randn(2, steps, envs, generator=generator)
    discounts = 0.9 * (torch.rand(steps, envs, generator=generator) > 0.2).float()
    bootstrap = torch.randn(envs, generator=generator)
    a2c = load_a2c()
    got = a2c.n_step_returns(rewards, discounts, values, bootstrap)
    for env in range(envs):
        for t in range(steps):
            expected, factor = 0.0, 1.0
            for k in range(t, steps):
                expected += factor * float(rewards[k, env])
                factor *= float(discounts[k, env])
            expected += factor * float(bootstrap[env])
            assert float(got.vs[t, env]) == pytest.approx(expected, abs=1e-5)
            advantage = expected - float(values[t, env])
            assert float(got.pg_advantages[t, env]) == pytest.approx(advantage, abs=1e-5)


@pytest.mark.parametrize("name", ["MLPAgent", "MLPLSTMAgent"])
def test_a_rollout_follows_the_convention_of_time(name):
    """Rewards equal the step's number and observations show it: no row can be off by one."""
    a2c = load_a2c()
    environment = environments.make_environment("tests.fakes:CutCounter-v0", 2, seed=1)
    agent = make_agent(name, environment.spec)
    actor = a2c.Actor(agent, environment)
    actor.play(2)
    rollout = actor.play(7)  # episodes are cut after 3 steps: this one begins at their step 2
    assert rollout.inputs.observation[:, 0, 1].tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    assert rollout.inputs.reward[:, 0].tolist() == [2, 3, 1, 2, 3, 1, 2, 3]
    assert rollout.inputs.done[:, 0].tolist() == [row in (1, 4, 7) for row in range(8)]
    assert torch.equal(rollout.inputs.last_action[1:], rollout.actions)
    cut = rollout.final_values != 0
    assert cut[:, 0].tolist() == [row in (0, 3, 6) for row in range(7)]
    assert [episode.episode_return for episode in rollout.episodes] == [6.0] * 6
    loss = a2c.a2c_loss(agent, rollout, a2c.Settings())
    assert loss.shape == ()
    loss.backward()


@pytest.mark.slow
def test_a2c_learns_cartpole_and_draws_it(run_python):
    done = run_python(A2C, "--total_environment_frames=250000", timeout=400)
    assert done.returncode == 0, done.stderr
    returns = [float(value) for value in re.findall(r"mean return +([\d.]+) ", done.stdout)]
    assert len(returns) == 25
    assert returns[0] < 60
    assert returns[-1] > 200
    assert "mean return of the last 100 episodes" in done.stdout
    assert "\x1b" not in done.stdout  # as plain text
    assert "1 learner(s), mean return" in done.stdout


@pytest.mark.slow
def test_two_learners_of_a2c_keep_equal_weights(start, tmp_path):
    job = tmp_path / "job.py"
    job.write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(A2C.parent)!r})\n"
        "import a2c\n"
        "learners = a2c.group.join()\n"
        "settings = a2c.Settings(total_environment_frames=6400, num_envs=4)\n"
        "result = a2c.train(settings, learners, say=lambda line: None)\n"
        "path = pathlib.Path(sys.argv[1], str(learners.rank))\n"
        "path.write_text(f'{learners.size} {result.frames[-1]} {a2c.fingerprint(result.agent)}')\n"
        "learners.close()\n"
    )
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    run = start(
        [
            *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
            *("--mca", "btl_vader_single_copy_mechanism", "none"),
            *("-np", "2", "-H", "localhost:2", sys.executable, job, tmp_path),
        ],
        env={"OMP_NUM_THREADS": "1"},
    )
    assert run.wait(timeout=200) == 0
    told = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("2 6400 ")
    # Of both ranks' data: one learner alone comes to other weights.
    a2c = load_a2c()
    settings = a2c.Settings(total_environment_frames=3200, num_envs=4)
    alone = a2c.train(settings, Group(), say=lambda line: None)
    assert a2c.fingerprint(alone.agent) not in told[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--level_name=NoSuch-v0"], "error: --level_name=NoSuch-v0"),
        (["--level_name=PongNoFrameskip-v4"], "Player stacks them"),
        (["--unroll_length=0"], "--unroll_length must be more than 0"),
    ],
)
def test_a2c_tells_bad_input(run_python, flags, said):
    done = run_python(A2C, *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
