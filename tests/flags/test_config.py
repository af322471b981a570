"""Flags: declared once, read back from their own command line, wrong ones told in a sentence."""

import dataclasses
import datetime
import json
import math
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from absl import flags

from impala_torch.flags import checks, command_line
from impala_torch.flags import config as config_lib
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.flags.presets import ALGORITHMS, PRESETS

FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def read(argv, skip=()):
    values = flags.FlagValues()
    command_line.define_flags(values, skip)
    command_line.parse_flags(["program", *argv], values)
    return command_line.from_flags(values)


def values_of(field):
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    by_type = {
        bool: st.booleans(),
        int: st.integers(-(2**70), 2**70),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    }
    return by_type[type(field.default)]


CONFIGS = st.builds(Config, **{name: values_of(field) for name, field in FIELDS.items()})


@hypothesis.given(config=CONFIGS, only_changed=st.booleans())
def test_a_command_line_reads_back_to_the_same(config, only_changed):
    values = flags.FlagValues()
    command_line.define_flags(values)
    command_line.parse_flags(["program", *command_line.to_argv(config, only_changed)], values)
    # Whether the values make sense together is from_flags' business, not this test's.
    assert {name: values[name].value for name in FIELDS} == config_lib.to_dict(config)


def test_defaults_need_no_flags():
    assert command_line.to_argv(Config()) == []
    assert read([]) == Config()
    assert len(command_line.to_argv(Config(), only_changed=False)) == len(FIELDS)


def test_overrides_are_written_even_when_they_are_defaults():
    argv = command_line.to_argv(Config(seed=3), job_name="learner", task=0)
    assert argv == ["--job_name=learner", "--task=0", "--seed=3"]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--batch_size", "4"], "batch_size", 4),
        (["-batch_size=4"], "batch_size", 4),
        (["--noepisodic_life"], "episodic_life", False),
        (["--episodic_life=false"], "episodic_life", False),
        (["--learning_rate=6e-4"], "learning_rate", 0.0006),
        (["--env=ALE/Pong-v5"], "level_name", "ALE/Pong-v5"),
        (["--alpha=0.5"], "decay", 0.5),
        (["--grad_norm_clipping=40"], "gradients_clipping", 40.0),
    ],
)
def test_ways_to_write_a_flag(argv, name, value):
    assert read(argv) == Config().replace(**{name: value})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batch_sizes=4"], ["batch_sizes", "batch_size"]),
        (["--batch_size=four"], ["batch_size", "four"]),
        (["--batch_size=0"], ["--batch_size", "more than 0"]),
        (["--batch_size"], ["batch_size"]),
        (["--mode=play"], ["--mode", "train|test|sample"]),
        (["--reward_clipping=some"], ["reward_clipping", "soft_asymmetric"]),
        (["--noepisodic_life=3"], ["noepisodic_life"]),
        (["--episodic_life=maybe"], ["episodic_life", "maybe"]),
        (["--learning_rate=nan"], ["--learning_rate", "finite"]),
        (["--gradients_clipping=inf"], ["--gradients_clipping", "finite"]),
        (["--seed=-1"], ["--seed", "between 0 and"]),
        (["--discounting=1.5"], ["--discounting", "between 0 and 1"]),
        (["train"], ["'train' is not a flag"]),
        (["--seed=1", "--", "x"], ["'x' is not a flag"]),
        (["--learner_host=localhost"], ["--learner_host", "'localhost'", "ip:port"]),
        (["--learner_host=:80"], ["--learner_host", "ip:port"]),
        (["--learner_host=a:0"], ["--learner_host", "'0'", "65535"]),
        (["--actor_hosts=a:1,b:x"], ["--actor_hosts", "'x'", "'b:x'"]),
        (["--task=-2"], ["--task", "-2"]),
        (["--job_name=actor"], ["--job_name=actor", "--task"]),
        (["--job_name=actor", "--task=1"], ["--task=1", "--actor_hosts", "0 to 0"]),
    ],
)
def test_a_wrong_flag_is_told_in_a_sentence(argv, words):
    with pytest.raises(UserError) as caught:
        read(argv)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipped_flags_are_unknown():
    assert read(["--seed=2"], skip=config_lib.PER_PROCESS) == Config(seed=2)
    for name in config_lib.PER_PROCESS:
        with pytest.raises(UserError, match=name):
            read([f"--{name}={FIELDS[name].default}"], skip=config_lib.PER_PROCESS)


def test_actors_by_task():
    assert read(["--actor_hosts=a:1,b:2"]).actors == ["a:1", "b:2"]


def test_the_manual_has_every_flag_in_its_chapter():
    values = flags.FlagValues()
    command_line.define_flags(values)
    chapters: dict[str, list[str]] = {}
    for line in command_line.manual(values).splitlines():
        if line and not line.startswith(" "):
            chapters[line.rstrip(":")] = []
        elif line.startswith("  --"):
            name = line.strip().removeprefix("--[no]").removeprefix("--").split(":")[0]
            chapters[list(chapters)[-1]].append(name)
    expected: dict[str, list[str]] = {}
    for name, field in FIELDS.items():
        expected.setdefault(field.metadata["group"], []).append(name)
    aliases = chapters.popitem()
    assert sorted(aliases[1]) == sorted(command_line.ALIASES)
    assert list(chapters) == list(expected)
    assert {group: sorted(names) for group, names in expected.items()} == chapters


@pytest.mark.parametrize("word", ["--help", "--helpfull", "-h"])
def test_help_exits_cleanly(word, capsys):
    with pytest.raises(SystemExit) as caught:
        read([word])
    assert caught.value.code == 0
    assert ("--batch_size" in capsys.readouterr().out) == (word == "--helpfull")


def test_every_default_is_of_its_declared_type_and_allowed():
    for field in FIELDS.values():
        assert type(field.default) is field.type
        assert not field.metadata["choices"] or field.default in field.metadata["choices"]
        assert field.metadata["help"].strip()
        assert not isinstance(field.default, float) or math.isfinite(field.default)


def test_a_default_logdir_is_one_directory_below_the_levels():
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    assert config_lib.default_logdir("ALE/Pong-v5", now) == "logs/ALE-Pong-v5/20260102-030405"
    assert config_lib.default_logdir("../../x y", now).count("/") == 2


def test_the_flags_load_neither_torch_nor_environments():
    code = (
        "import sys, impala_torch.flags.config; "
        "print([name for name in ('torch', 'gymnasium', 'numpy', 'zmq') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def written(tmp_path, **flag_values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"flags": {**config_lib.to_dict(Config()), **flag_values}}))
    return path


def test_a_preset_stands_in_for_defaults_and_given_flags_go_before_it():
    values = PRESETS["atari_impala"]
    config = read(["--preset=atari_impala", "--unroll_length=100", "--num_envs=16"])
    assert (config.unroll_length, config.num_envs) == (100, 16)
    for name in set(values) - {"unroll_length", "num_envs"}:
        assert getattr(config, name) == values[name], name
    # 100 and 16 are defaults; the next process must not take the preset's in their place.
    assert read(command_line.to_argv(config)) == config


def test_an_algorithm_has_defaults_a_preset_goes_before_and_given_flags_before_both():
    assert read([]).epsilon == 0.1
    config = read(["--algorithm=appo", "--gradients_clipping=2"])
    assert (config.epsilon, config.gradients_clipping) == (1e-5, 2)
    preset = read(["--preset=atari_fast"])
    assert preset.algorithm == "appo"
    assert preset.epsilon == 1e-5  # of the algorithm
    assert preset.learning_rate == PRESETS["atari_fast"]["learning_rate"]
    # What the next process reads is what this one has, defaults of the paper among it.
    config = read(["--algorithm=appo", "--epsilon=0.1", "--batch_reuse=1", "--num_minibatches=1"])
    assert read(command_line.to_argv(config)) == config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset=atari_fast", "--algorithm=impala"], "--preset=atari_fast is of --algorithm=ap"),
        (["--preset=atari_impala", "--algorithm=appo"], "--preset=atari_impala is of --algorithm"),
        (["--algorithm=appo", "--momentum=0.5"], "--momentum is of --algorithm=impala, not appo"),
        (["--target_kl=0.1"], "--target_kl is of --algorithm=appo, not impala"),
        (["--algorithm=appo", "--batch_size=32", "--virtual_batch_size=64"], "lets each go"),
        (["--num_minibatches=3", "--batch_size=8"], "--batch_size=8 is no multiple of"),
        (["--algorithm=ppo"], "ppo"),
    ],
)
def test_what_is_not_of_an_algorithm_is_told(argv, words):
    with pytest.raises(UserError, match=re.escape(words)):
        read(argv)


def test_every_algorithm_that_can_be_chosen_is_there_and_the_other_way_round():
    from impala_torch.algorithms import ALGORITHMS as CLASSES

    assert set(CLASSES) == set(ALGORITHMS) == set(FIELDS["algorithm"].metadata["choices"])
    assert {FIELDS[name].metadata["algorithm"] for name in FIELDS} <= {"", *CLASSES}


def test_how_many_environments_an_actor_has_does_not_depend_on_how_a_batch_is_split():
    for batch_size in (1, 16, 32, 256):
        assert read([f"--batch_size={batch_size}"]).num_envs == 16


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"none"}))
def test_a_preset_holds_known_flags_of_the_right_types(name):
    for flag, value in PRESETS[name].items():
        assert type(value) is type(FIELDS[flag].default), flag
    checks.check(read([f"--preset={name}"]))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_so_do_an_algorithms_defaults(name):
    for flag, value in ALGORITHMS[name].items():
        assert type(value) is type(FIELDS[flag].default), flag
    checks.check(read([f"--algorithm={name}"]))


def test_a_runs_config_starts_the_same_again_in_a_new_place(tmp_path):
    path = written(tmp_path, seed=7, momentum=0.5, logdir="/old", task=3, key_file="k")
    config = read([f"--config={path}", "--batch_size=9"])
    assert config == Config(seed=7, momentum=0.5, batch_size=9)
    assert read([f"--config={written(tmp_path, learning_rate=1)}"]).learning_rate == 1.0


def test_a_runs_config_has_its_algorithm(tmp_path):
    path = written(tmp_path, algorithm="appo", preset="atari_fast")
    assert read([f"--config={path}", "--algorithm=appo"]).algorithm == "appo"
    with pytest.raises(UserError, match=r"config.json is of --algorithm=appo: leave one"):
        read([f"--config={path}", "--algorithm=impala"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is not the config.json of a run"),
        ("[]", "is not the config.json of a run"),
        ('{"flags": 3}', "is not the config.json of a run"),
        ('{"flags": {"seed": "x"}}', "its seed is 'x'"),
        ('{"flags": {"precision": "float8"}}', "its precision is 'float8'"),
        ('{"flags": {"batch_size": 0}}', "--batch_size must be more than 0"),
    ],
)
def test_a_file_that_is_no_config_is_told(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read([f"--config={path}"])


def test_config_and_preset_together_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(UserError, match="both choose the flags"):
        read([f"--config={written(tmp_path)}", "--preset=atari_fast"])
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(["--config=/none/config.json"])
