"""What is to be known of a flag stands at its declaration, and nowhere a second time."""

import ast
import dataclasses
import pathlib

import pytest
from absl import flags

from frontend import flags as frontend_flags
from impala_torch.flags import checks, config
from impala_torch.flags.config import NO_LIMIT, Config, having
from impala_torch.flags.errors import UserError
from tests.conftest import ROOT
from tests.test_architecture import sources

FIELDS = (*dataclasses.fields(Config), *dataclasses.fields(frontend_flags.Options))
NAMES = {field.name for field in FIELDS}
DECLARATIONS = ("impala_torch/flags/config.py", "frontend/flags.py")
# File -> why flags' names together are no property of flags there.
ALLOWED = {"impala_torch/flags/presets.py": "a preset's values"}
MOST = 2  # names together that are no list yet


def lists_of_flags(source: str) -> list[tuple[int, list[str]]]:
    """(line, names) of each literal that lists flags.

    A tuple, a list or a set, with what is unpacked into it; a text to be split; a module's map.
    Maps within functions are rows and arguments: values, not properties.
    """
    tree = ast.parse(source)
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    maps = {id(node) for top in assigned for node in ast.walk(top) if isinstance(node, ast.Dict)}
    found = []
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            words = texts(node.elts)
        elif isinstance(node, ast.Dict) and id(node) in maps:
            words = texts(node.keys)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            split = node.value.split()
            words = split if NAMES.issuperset(split) else []
        names = [word for word in words if word in NAMES]
        if len(names) > MOST:
            found.append((node.lineno, names))
    return found


def texts(nodes) -> list[str]:
    words = []
    for node in nodes:
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List | ast.Set):
            words += texts(node.value.elts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.append(node.value)
    return words


@pytest.mark.parametrize(
    "source",
    [
        'X = ("seed", "task", "mode")',
        'def f():\n    return {*OTHERS, "seed", *("task", "mode")}',
        'for name in "seed task mode".split(): pass',
        'X = {"seed": 1, "task": 2, "mode": 3}',
    ],
)
def test_a_list_of_flags_is_found(source):
    ((_, names),) = lists_of_flags(source)
    assert names == ["seed", "task", "mode"]


@pytest.mark.parametrize(
    "source",
    [
        'X = ("seed", "task")',
        'X = "the seed of a task or mode"',
        'f({"seed": 1, "task": 2, "mode": 3})',
    ],
)
def test_what_is_no_list_of_flags_is_left_alone(source):
    assert lists_of_flags(source) == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_lists_flags(path: pathlib.Path):
    name = str(path.relative_to(ROOT))
    found = lists_of_flags(path.read_text())
    if name in ALLOWED:
        assert found, f"{name} need not be allowed any more"
        return
    assert not found, "say it at the flags' declarations, and find them with having()"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_each_number_states_its_range_and_is_within(field):
    low, above, high = (field.metadata[end] for end in ("low", "above", "high"))
    if type(field.default) not in (int, float):
        assert low is above is high is None
        return
    assert (low is None) != (above is None), "low= or above=; low=NO_LIMIT says that there is none"
    assert high is None or low is not None
    assert not field.metadata["low_means"] or low is not None
    assert field.default >= low if above is None else field.default > above


RANGED = [
    field
    for field in FIELDS
    if type(field.default) in (int, float) and field.metadata["low"] != NO_LIMIT
]


@pytest.mark.parametrize("field", RANGED, ids=lambda field: field.name)
def test_a_number_out_of_its_range_is_told(field):
    low, above, high = (field.metadata[end] for end in ("low", "above", "high"))
    of_training = field.name in Config.__dataclass_fields__
    cls = Config if of_training else frontend_flags.Options
    wrong = type(field.default)(above if low is None else low - 1)
    said = {
        above is not None: f"must be more than 0, not {wrong}",
        low == 0: f"must not be negative, and is {wrong}",
        high is not None: f"must be between {low} and {high}, not {wrong}",
        low == -1: f"must be -1 (train locally) or more, not {wrong}",
    }
    with pytest.raises(UserError) as caught:
        checks.check_ranges(cls(**{field.name: wrong}))
    assert str(caught.value) == f"--{field.name} {said[True]}"
    if high is not None:
        with pytest.raises(UserError, match="must be between"):
            checks.check_ranges(cls(**{field.name: high + 1}))
    for right in (end for end in (low, high) if end is not None):
        checks.check_ranges(cls(**{field.name: type(field.default)(right)}))


def test_numbers_are_finite_and_may_be_large():
    for value in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="--gradients_clipping must be a finite number, not"):
            checks.check_ranges(Config(gradients_clipping=value))
    checks.check_ranges(Config(total_environment_frames=10**400, gradients_clipping=-1e300))


def test_the_frontends_flags_are_checked_where_they_are_read():
    values = flags.FlagValues()
    frontend_flags.define_flags(values)
    values(["program", "--ssh_timeout=0"])
    with pytest.raises(UserError, match="--ssh_timeout must be more than 0, not 0"):
        frontend_flags.from_flags(values)


def test_one_property_follows_from_another():
    assert set(having(mode="test")) < set(config.PER_PROCESS) == set(having(per_process=True))
    for name in config.PER_PROCESS:
        assert name in having(per_learner=True, inherited=False, affects_learning=False), name
    assert set(having(of_agent=True)) < set(having(exported=True))
    assert set(having(of_weights=True)) < set(having(of_agent=True))
    assert not having(exported=True, private=True)
    for group in (config.OUTPUT, config.WANDB):
        assert having(group=group) == having(group=group, affects_learning=False)
    with pytest.raises(KeyError):
        having(per_proces=True)


# Where a mistake would cost an experiment, or tell what is nobody's business.
BY_PROPERTY = {
    "per_learner": "actor_threads device key_file learner_threads logdir",
    "private": "actor_hosts key_file learner_host relay",
    "of_weights": "agent_name level_name normalize_observations normalize_values",
    "of_agent": "agent_name height level_name normalize_observations normalize_values "
    "num_action_repeats width",
    "exported": "agent_name algorithm episodic_life height level_name max_episode_steps "
    "normalize_observations normalize_values num_action_repeats precision reward_clipping seed "
    "width",
}


@pytest.mark.parametrize("name", BY_PROPERTY)
def test_these_and_no_others(name):
    found = set(having(**{name: True}))
    if name == "per_learner":
        found -= set(config.PER_PROCESS)
    assert sorted(found) == BY_PROPERTY[name].split()


def test_what_a_run_does_not_take_over_or_does_not_learn_by():
    not_inherited = set(having(inherited=False)) - set(config.PER_PROCESS)
    assert not_inherited == {"config", "key_file", "logdir"}
    beside = set(having(affects_learning=False)) - set(config.PER_PROCESS)
    beside -= {*having(group=config.OUTPUT), *having(group=config.WANDB)}
    assert beside == {"env_timeout", "key_file", "learner_timeout", "stall_secs"}
