"""Settings that were found to work together; ``--preset`` names one.

A preset stands in for the defaults: flags on the command line go before it. How well each does is
told in ``sandbox/case_studies.md``.
"""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # Atari games on a few CPU cores: many small updates on fresh data. Short unrolls keep the lag
    # at five updates; momentum makes ten times the step of the learning rate; clipping keeps the
    # first steps small, while RMSProp's mean square comes down from one.
    "atari_fast": {
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
