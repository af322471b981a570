"""Every flag of training, declared once: name, type, default, help, allowed values.

``Config`` is the declaration and what code receives; ``command_line`` reads and writes it, and
``checks`` refuses what cannot work.

Importing this module loads neither torch nor any environment.
"""

import dataclasses
import datetime
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from impala_torch.flags.presets import ALGORITHMS, PRESETS

RUN, ENVIRONMENT, AGENT, ACTING, LEARNING, LOSS, OPTIMIZER, OUTPUT, WANDB = (
    "the run",
    "the environment",
    "the agent",
    "acting",
    "learning",
    "the loss",
    "the optimizer",
    "what a run leaves",
    "Weights & Biases",
)

NO_LIMIT = -math.inf  # as ``low``: any finite number will do, as far as the flag alone can tell
# Chapters of what is told of learning, which learning itself goes without.
_BESIDE_LEARNING = (OUTPUT, WANDB)


def flag(
    group: str,
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    low_means: str = "",
    above: float | None = None,
    high: float | None = None,
    per_process: bool = False,
    per_learner: bool = False,
    mode: str = "",
    algorithm: str = "",
    inherited: bool = True,
    private: bool = False,
    affects_learning: bool | None = None,
    of_agent: bool = False,
    of_weights: bool = False,
    exported: bool = False,
    says_itself: bool = False,
) -> Any:
    """A field of a dataclass that is also a flag, with all that is to be known of it.

    ``having`` finds flags by what is said here, so that no other module lists them. Of numbers,
    the range is said: ``above``, which is not allowed itself, or ``low``, which is; beside ``low``
    there may be ``high``, which is allowed too.

    Args:
      group: its chapter in --helpfull.
      default: what it is where it is not given; its type is the flag's.
      help_text: for --helpfull and the README.
      choices: its only values, of a string.
      low, above, high: the range; ``low=NO_LIMIT`` where there is none.
      low_means: what ``low`` stands for, if for something of its own; told with the error.
      per_process: names one process; other flags are the same for every process of a run.
      per_learner: the host's or the learner's own affair, where other flags must agree between the
        learners of a run. Those per process are that too.
      mode: the only --mode that it is of. It is one process's then too.
      algorithm: the only --algorithm that it is of.
      inherited: a run that is started the same again (--config) takes it from the older one.
        Those per process are not.
      private: tells of the network or of keys, and stays on the run's hosts.
      affects_learning: runs that differ in it are different experiments. Unless told, so is every
        flag that is not per process and not of the chapters that come after learning.
      of_agent: a checkpoint's weights mean something with this value only.
      of_weights: a checkpoint's weights fit no other value. So such a flag is of the agent too.
      exported: goes along with an agent that leaves its run. Those of the agent do too.
      says_itself: its value needs no name in front of it to be understood.
    """
    per_process = per_process or bool(mode)
    of_agent = of_agent or of_weights
    if affects_learning is None:
        affects_learning = not per_process and group not in _BESIDE_LEARNING
    metadata = {
        "group": group,
        "help": help_text,
        "choices": choices,
        "low": low,
        "low_means": low_means,
        "above": above,
        "high": high,
        "per_process": per_process,
        "per_learner": per_learner or per_process,
        "mode": mode,
        "algorithm": algorithm,
        "inherited": inherited and not per_process,
        "private": private,
        "affects_learning": affects_learning,
        "of_agent": of_agent,
        "of_weights": of_weights,
        "exported": exported or of_agent,
        "says_itself": says_itself,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags of training, with T = unroll length, B = batch size, E = --num_envs."""

    # --- the run ---
    mode: str = flag(
        RUN,
        "train",
        "train, or test: play --test_num_episodes whole games with the newest checkpoint of "
        "--logdir; print mean, median, standard deviation, minimum and maximum return, and the "
        "human-normalised score of Atari games; write evaluation.json and evaluation.csv; or "
        "sample: step the environments of --num_actors processes with random actions for "
        "--sample_secs, which bounds what any training on this machine can reach.",
        choices=("train", "test", "sample"),
        per_process=True,
    )
    preset: str = flag(
        RUN,
        "none",
        "Defaults that work together, for the flags that are not given: atari_fast = Atari games "
        "on a few CPU cores; atari_impala = the same with --algorithm=impala; classic = CartPole, "
        "Acrobot, MountainCar, LunarLander (sandbox/case_studies.md tells how well).",
        choices=tuple(PRESETS),
    )
    config: str = flag(
        RUN,
        "",
        "A run's config.json: start the same again, in a new --logdir. Flags that are given go "
        "before it.",
        inherited=False,
    )
    job_name: str = flag(
        RUN,
        "learner",
        "What this process is when --task is 0 or more: a learner or an actor; or an evaluator, "
        "which plays whole games with the weights of the learner at --learner_host every "
        "--eval_interval_frames (a run starts its own).",
        choices=("learner", "actor", "evaluator"),
        per_process=True,
    )
    task: int = flag(
        RUN,
        -1,
        "Number of this process among those of its job: of an actor, its place in "
        "--actor_hosts; of a learner, its number. -1 trains locally: a learner and --num_actors "
        "actor processes on this machine.",
        low=-1,
        low_means="train locally",
        per_process=True,
    )
    learner_host: str = flag(
        RUN,
        "localhost:8001",
        "ip:port of the learner's parameter endpoint: what a learner serves and what its actors "
        "connect to; on one machine also ipc:// and a path in a folder that only you can open.",
        per_process=True,
        private=True,
    )
    actor_hosts: str = flag(
        RUN,
        "localhost:9001",
        "Comma-separated ip:port of this learner's actors. Nothing listens there: the list says "
        "how many actors the learner has, and each one's --task is its place in it.",
        per_process=True,
        private=True,
    )
    key_file: str = flag(
        RUN,
        "",
        "File with the keys of the run, which encrypt the endpoint and admit only those who "
        "hold it; made by 'python -m impala_torch.endpoint.keys FILE'. Needed wherever "
        "--learner_host is not a loopback address.",
        per_learner=True,
        inherited=False,
        private=True,
        affects_learning=False,
    )
    relay: str = flag(
        RUN,
        "",
        "ipc:// address of this host's relay, through which an actor reaches --learner_host; "
        "empty = directly.",
        per_process=True,
        private=True,
    )
    learner_timeout: float = flag(
        RUN,
        600.0,
        "Seconds an actor goes on trying to reach a learner that is gone, keeping its "
        "environments; 0 = for ever.",
        low=0,
        affects_learning=False,
    )
    stall_secs: float = flag(
        RUN,
        300.0,
        "Seconds that learners may stand still, each waiting for the others, before they write the "
        "stacks of their threads to their logs and end; the supervisor starts them again. What a "
        "learner does by itself, such as writing a checkpoint, may take ten times as long. 0 = for "
        "ever.",
        low=0,
        affects_learning=False,
    )
    seed: int = flag(
        RUN,
        1,
        "Seed of weights, environments and action sampling; every actor derives its own.",
        low=0,
        high=(1 << 63) - 1,
        exported=True,
    )
    # --- the environment ---
    level_name: str = flag(
        ENVIRONMENT,
        "BreakoutNoFrameskip-v4",
        "An Atari game as <Game>NoFrameskip-v4 (no sticky actions) or ALE/<Game>-v5 (sticky "
        "actions, 0.25), or the id of any registered gymnasium environment with discrete actions "
        "and an image or vector observation; mypackage.mymodule:MyEnv-v0 imports the module that "
        "registers it.",
        of_weights=True,
        says_itself=True,
    )
    width: int = flag(
        ENVIRONMENT,
        84,
        "Width of the frames that the agent sees, in pixels.",
        above=0,
        of_agent=True,
    )
    height: int = flag(
        ENVIRONMENT,
        84,
        "Height of the frames that the agent sees, in pixels.",
        above=0,
        of_agent=True,
    )
    num_action_repeats: int = flag(
        ENVIRONMENT,
        0,
        "Environment frames per agent step. 0 = the usual of the level: 4 for Atari, else 1.",
        low=0,
        of_agent=True,
    )
    episodic_life: bool = flag(
        ENVIRONMENT,
        True,
        "In Atari, end the learner's episode with each life lost. The whole game's return is "
        "reported too, and test mode plays whole games.",
        exported=True,
    )
    max_episode_steps: int = flag(
        ENVIRONMENT,
        0,
        "Environment frames after which a game is cut; the value of its last observation is "
        "bootstrapped. 0 = the level's own: 108,000 in Atari, and in evaluations of levels that "
        "have none.",
        low=0,
        exported=True,
    )
    env_timeout: float = flag(
        ENVIRONMENT,
        300.0,
        "Seconds that an environment may take for a step, or to be made or closed: its process "
        "ends then and says where it stood, and an actor is started again. 0 = for ever.",
        low=0,
        affects_learning=False,
    )
    # --- the agent ---
    agent_name: str = flag(
        AGENT,
        "SimpleConvNetAgent",
        "The network: SimpleConvNetAgent, ShallowConvNetAgent, ShallowConvLSTMAgent, "
        "ResNetAgent, ResNetLSTMAgent for images, MLPAgent, MLPLSTMAgent for vectors; or one of "
        "your own as mypackage.mymodule:MyAgent, see sandbox/api.md.",
        of_weights=True,
        says_itself=True,
    )
    normalize_observations: bool = flag(
        AGENT,
        False,
        "Let the agent see what differs from the usual. Of images the mean picture is subtracted, "
        "within the first convolution; vectors get mean 0 and deviation 1 in each number. The "
        "statistics are the agent's: learned in training, from the batches of all learners, and "
        "kept with the weights.",
        of_weights=True,
    )
    precision: str = flag(
        AGENT,
        "auto",
        "Arithmetic of the torso's convolutions and linear layers; weights, heads, V-trace and "
        "losses are float32 always. auto = bfloat16 where the processor or GPU has instructions "
        "for it.",
        choices=("auto", "float32", "bfloat16"),
        exported=True,
    )
    # --- acting ---
    num_actors: int = flag(
        ACTING, 0, "Actor processes of local training (--task=-1). 0 = one for each core.", low=0
    )
    num_envs: int = flag(
        ACTING,
        16,
        "E: environments of one actor, stepped together with one batched forward. More are faster "
        "where a machine has room, and every one of them is more in flight: 32 suits a batch of 32 "
        "or more, over all learners.",
        above=0,
    )
    total_num_envs: int = flag(
        ACTING,
        0,
        "Environments of all actors of the run together, shared out evenly: what is in flight is "
        "then the same however many actors there are. 0 = --num_envs of each.",
        low=0,
    )
    actor_threads: int = flag(
        ACTING,
        0,
        "Threads of one actor for emulation and inference. 0 = 1, for several actors a machine.",
        low=0,
        per_learner=True,
    )
    # --- learning ---
    algorithm: str = flag(
        LEARNING,
        "impala",
        "impala: the paper's; each batch is learned from once, with losses that are sums. appo: "
        "the clipped surrogate of PPO over V-trace targets; each batch is learned from several "
        "times, in minibatches, with losses that are means, and Adam. It has defaults of its own: "
        + "; ".join(
            f"{name}: " + ", ".join(f"--{flag}={value}" for flag, value in values.items())
            for name, values in ALGORITHMS.items()
            if values
        )
        + ".",
        choices=tuple(ALGORITHMS),
        exported=True,
    )
    total_environment_frames: int = flag(
        LEARNING,
        1_000_000_000,
        "Environment frames (agent steps x repeats, over all learners) to train for. The "
        "learning rate falls linearly to 0 over them.",
        above=0,
    )
    batch_size: int = flag(
        LEARNING,
        2,
        "B: unrolls per update of one learner; n learners learn from n x B together, as one "
        "learner with that --batch_size would.",
        above=0,
    )
    total_batch_size: int = flag(
        LEARNING,
        0,
        "Unrolls of all learners' batches together, shared out evenly. 0 = --batch_size of each.",
        low=0,
    )
    unroll_length: int = flag(LEARNING, 100, "T: agent steps of an unroll.", above=0)
    virtual_batch_size: int = flag(
        LEARNING,
        0,
        "Unrolls per optimizer step of one learner: gradients of so many are added up, batch by "
        "batch, before they become one with the other learners' and are applied; exactly as if "
        "--batch_size were as large, in the memory of the small one. A multiple of --batch_size; "
        "0 = the same.",
        low=0,
    )
    batch_reuse: int = flag(
        LEARNING,
        1,
        "Times that each batch is learned from. More than 1 learns more from a frame, for more of "
        "the learner's time; V-trace corrects for the policy that moves meanwhile.",
        above=0,
    )
    num_minibatches: int = flag(
        LEARNING,
        1,
        "Parts that a batch is dealt into, anew each time that it is learned from, for an update "
        "with each. --batch_size is a multiple of it.",
        above=0,
    )
    queue_capacity: int = flag(
        LEARNING,
        2,
        "Batches that may wait at a learner for training. It bounds the learner's memory, "
        "whatever the number of actors; actors wait when it is full.",
        above=0,
    )
    max_policy_lag: int = flag(
        LEARNING,
        0,
        "Drop unrolls that were acted with weights more than this many updates old when they are "
        "to be learned from. 0 = keep all.",
        low=0,
    )
    weights_precision: str = flag(
        LEARNING,
        "float32",
        "Type that weights travel as to actors. bfloat16 halves what a pull costs the learner's "
        "link; the learner keeps and checkpoints float32, and V-trace takes the rounded policy "
        "for what it is, the behaviour policy.",
        choices=("float32", "bfloat16"),
    )
    gradients_precision: str = flag(
        LEARNING,
        "float32",
        "Type that learners exchange their gradients as. float16 halves what that sends: worth it "
        "where the learners' link is slow, and nothing gained where it is not.",
        choices=("float32", "float16"),
    )
    gradients_reduction: str = flag(
        LEARNING,
        "auto",
        "How the learners' gradients become one. auto = so that n learners of B unrolls make the "
        "update that one of n x B would make: added up, since the loss is a sum over its batch. "
        "average = divided by the number of learners, the TensorFlow original's way: the step "
        "then depends on how a batch is split.",
        choices=("auto", "average"),
    )
    device: str = flag(
        LEARNING,
        "auto",
        "Where the learner computes: cpu, cuda, cuda:N, or auto = a GPU where there is one (of "
        "several, the one of the learner's local rank).",
        per_learner=True,
    )
    learner_threads: int = flag(
        LEARNING,
        0,
        "Threads of the learner's CPU arithmetic. 0 = the cores, shared by the ranks of a host, "
        "and in local training with the actors: half of them.",
        low=0,
        per_learner=True,
    )
    compile: bool = flag(
        LEARNING,
        False,
        "Compile the learner's network with torch.compile: up to minutes at the start, for updates "
        "that may be faster afterwards. Needs a C++ compiler on a CPU, and Triton on a GPU.",
    )
    # --- the loss ---
    entropy_cost: float = flag(LOSS, 0.00025, "Weight of the entropy term.", low=0)
    entropy_decay: bool = flag(
        LOSS,
        False,
        "Let --entropy_cost fall linearly to 0 over --total_environment_frames, as the learning "
        "rate does: exploration first, then play that is sure of itself.",
    )
    baseline_cost: float = flag(LOSS, 0.5, "Weight of the baseline's squared error.", low=0)
    discounting: float = flag(LOSS, 0.99, "Discount per agent step.", low=0, high=1)
    vtrace_lambda: float = flag(
        LOSS,
        1.0,
        "Lambda of V-trace (remark 2 of the paper): less than 1 trusts the baseline more and the "
        "rewards of the unroll less, with less variance.",
        low=0,
        high=1,
    )
    ratio_clipping: float = flag(
        LOSS,
        0.2,
        "Epsilon of the clipped surrogate: an action that is so much more or less likely by now "
        "than when it was taken is pushed no further.",
        above=0,
        algorithm="appo",
    )
    normalize_advantages: bool = flag(
        LOSS,
        True,
        "Shift and scale the advantages of a batch, over all learners, to mean 0 and deviation 1.",
        algorithm="appo",
    )
    normalize_values: bool = flag(
        LOSS,
        False,
        "Have the baseline learn values shifted and scaled to mean 0 and deviation 1 (PopArt). For "
        "rewards that are not clipped.",
        of_weights=True,
        algorithm="appo",
    )
    target_kl: float = flag(
        LOSS,
        0.01,
        "Divergence of the policy from that before a batch (with --target_network from that), mean "
        "over the batch's later updates, in nats: the learning rate gets smaller by a third where "
        "it is twice as much, larger by a half where it is half as much. It falls to 0 in the "
        "second half of --total_environment_frames. 0 = the learning rate is as given.",
        low=0,
        algorithm="appo",
    )
    target_network: int = flag(
        LOSS,
        0,
        "Updates after which, at the next batch, the network is copied to one that stands still in "
        "between, gives the targets, and which the policy must stay near (IMPACT). 0 = none.",
        low=0,
        algorithm="appo",
    )
    reward_clipping: str = flag(
        LOSS,
        "abs_one",
        "abs_one: clip to [-1, 1]. soft_asymmetric: 5 tanh(r / 5), negatives times 0.3. none.",
        choices=("abs_one", "soft_asymmetric", "none"),
        exported=True,
    )
    # --- the optimizer ---
    learning_rate: float = flag(OPTIMIZER, 0.00048, "Learning rate at frame 0.", low=0)
    decay: float = flag(
        OPTIMIZER, 0.99, "Decay of RMSProp's mean square.", low=0, high=1, algorithm="impala"
    )
    momentum: float = flag(OPTIMIZER, 0.0, "Momentum of RMSProp.", low=0, algorithm="impala")
    epsilon: float = flag(
        OPTIMIZER,
        0.1,
        "Epsilon of the optimizer: of RMSProp (impala) inside the square root, as in TensorFlow; "
        "of Adam (appo) beside it.",
        above=0,
    )
    gradients_clipping: float = flag(
        OPTIMIZER,
        -1.0,
        "Clip the global norm of all learners' gradient to this. Negative = off.",
        low=NO_LIMIT,
    )
    # --- what a run leaves ---
    logdir: str = flag(
        OUTPUT,
        "",
        "Directory of the run; a run that finds a checkpoint there goes on from it. Empty = "
        "logs/<level>/<date-time>, with logs/latest pointing to it.",
        per_learner=True,
        inherited=False,
    )
    save_checkpoint_secs: float = flag(
        OUTPUT,
        600.0,
        "Seconds between checkpoints; the first comes after a minute at most, and one more is "
        "written at the end.",
        above=0,
    )
    keep_checkpoints: int = flag(OUTPUT, 3, "Newest checkpoints to keep.", above=0)
    quiet: bool = flag(
        OUTPUT,
        False,
        "Show warnings and results only; the logs of a run in --logdir stay whole.",
    )
    progress_secs: float = flag(
        OUTPUT, 5.0, "Seconds between lines of progress and of metrics.csv.", above=0
    )
    eval_interval_frames: int = flag(
        OUTPUT,
        0,
        "Environment frames between evaluations beside training, in a process of their own on the "
        "first learner's host: --test_num_episodes whole games with the weights of then, to "
        "evaluation.csv and TensorBoard. 0 = none.",
        low=0,
    )
    test_num_episodes: int = flag(
        OUTPUT, 10, "Whole games of an evaluation, in test mode and beside training.", above=0
    )
    greedy: bool = flag(
        OUTPUT, False, "In evaluations take the likeliest action instead of sampling the policy."
    )
    checkpoint: str = flag(
        OUTPUT, "", "Checkpoint file for test mode; empty = the newest of --logdir.", mode="test"
    )
    levels: str = flag(
        OUTPUT,
        "",
        "Comma-separated levels for test mode, each with the newest run of it that is found in "
        "--logdir and the folders below; or atari57: those of the 57 Atari games that are there.",
        mode="test",
    )
    record: str = flag(
        OUTPUT,
        "",
        "Folder for videos of test mode: an MP4 of every game, in all its frames.",
        mode="test",
    )
    render: bool = flag(
        OUTPUT,
        False,
        "Show the games of test mode in a window, as fast as a person plays.",
        mode="test",
    )
    record_margin: bool = flag(
        OUTPUT,
        False,
        "Write score and value (the agent's estimate of what is to come) into a margin under the "
        "pictures of --record and --render.",
        mode="test",
    )
    sample_secs: float = flag(OUTPUT, 10.0, "Seconds to sample for in sample mode.", above=0)
    # --- Weights & Biases: Sample Factory's names ---
    with_wandb: bool = flag(
        WANDB,
        False,
        "Send the columns of metrics.csv to Weights & Biases too, over environment frames, with "
        "the run's flags. Needs its client and 'wandb login' where the first learner runs; "
        "WANDB_MODE=offline in the environment keeps them on this machine.",
    )
    wandb_user: str = flag(WANDB, "", "User or team (entity) there; empty = the user's own.")
    wandb_project: str = flag(WANDB, "impala_torch", "Project there.")
    wandb_group: str = flag(WANDB, "", "Group of the run there; empty = --level_name.")
    wandb_job_type: str = flag(WANDB, "train", "Job type of the run there.")
    wandb_tags: str = flag(WANDB, "", "Comma-separated tags of the run there.")

    @property
    def batches_per_step(self) -> int:
        """Batches whose gradients are added up for one optimizer step."""
        return max(1, self.virtual_batch_size // self.batch_size)

    @property
    def actors(self) -> list[str]:
        """The actors' ``ip:port``, by task."""
        return [host for host in self.actor_hosts.split(",") if host]

    def replace(self, **changes: Any) -> "Config":
        return dataclasses.replace(self, **changes)


def having(**properties: Any) -> tuple[str, ...]:
    """Names of the flags whose declarations say all of this: ``having(per_process=True)``."""
    return tuple(
        field.name
        for field in dataclasses.fields(Config)
        if all(field.metadata[name] == value for name, value in properties.items())
    )


# Programs that start the processes of a run do not have these: they choose them.
PER_PROCESS = having(per_process=True)


def default_logdir(level_name: str, now: datetime.datetime | None = None) -> str:
    """``logs/<level>/<date-time>``; slashes in a level's name become dashes."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    return str(pathlib.Path("logs") / re.sub(r"[^\w.-]+", "-", level_name) / stamp)


def to_dict(config: Config) -> Mapping[str, Any]:
    return dataclasses.asdict(config)
