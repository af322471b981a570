"""Settings that were found to work together; ``--preset`` names one.

A preset stands in for the defaults: flags on the command line go before it. How well each does is
told in ``sandbox/case_studies.md``.
"""

from collections.abc import Mapping
from typing import Any

# Algorithms, with the defaults of each where they are others than the flags' own, which are those
# that the IMPALA paper published.
ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
    "impala": {},
    "appo": {
        "total_num_envs": 32,
        "total_batch_size": 32,
        "unroll_length": 32,
        "batch_reuse": 2,
        "num_minibatches": 2,
        "queue_capacity": 1,
        "learning_rate": 0.0005,
        "epsilon": 1e-5,
        "entropy_cost": 0.01,
        "baseline_cost": 1.0,
        "vtrace_lambda": 0.95,
        "gradients_clipping": 1.0,
    },
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # Atari games on a few CPU cores: each frame is learned from four times, in steps as large as a
    # trust region allows. Few environments keep what is in flight, and so the lag, at two batches;
    # little entropy lets play become sure of itself soon.
    "atari_fast": {
        "algorithm": "appo",
        "agent_name": "ShallowConvNetAgent",
        "normalize_observations": True,
        "batch_reuse": 4,
        "learning_rate": 0.001,
        "entropy_cost": 0.003,
        "entropy_decay": True,
        "total_environment_frames": 5_000_000,
    },
    # Gymnasium's classic control and LunarLander, whose rewards and observations are of any scale.
    "classic": {
        "algorithm": "appo",
        "agent_name": "MLPAgent",
        "level_name": "CartPole-v1",
        "normalize_observations": True,
        "normalize_values": True,
        "reward_clipping": "none",
        "total_num_envs": 16,
        "total_batch_size": 16,
        "unroll_length": 64,
        "num_minibatches": 4,
        "batch_reuse": 4,
        "entropy_decay": True,
        "vtrace_lambda": 0.98,
        "total_environment_frames": 1_000_000,
    },
    # Atari again with the paper's algorithm: many small updates on fresh data. Short unrolls keep
    # the lag at five updates; momentum makes ten times the step of the learning rate; clipping
    # keeps the first steps small, while RMSProp's mean square comes down from one.
    "atari_impala": {
        "algorithm": "impala",
        "agent_name": "ShallowConvNetAgent",
        "num_envs": 24,
        "batch_size": 8,
        "unroll_length": 10,
        "learning_rate": 0.00012,
        "momentum": 0.9,
        "epsilon": 1e-8,
        "entropy_cost": 0.005,
        "entropy_decay": True,
        "baseline_cost": 1.0,
        "vtrace_lambda": 0.97,
        "gradients_clipping": 40.0,
        "total_environment_frames": 20_000_000,
    },
}
