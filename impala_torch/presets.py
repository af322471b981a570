"""Settings that were found to work together; ``--preset`` names one.

A preset stands in for the defaults: flags on the command line go before it. How well each does is
told in ``sandbox/case_studies.md``.
"""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # Atari games on a few CPU cores: many small updates that learn from each frame more than once.
    # Momentum makes ten times the step of the learning rate.
    "atari_fast": {
        "agent_name": "ShallowConvNetAgent",
        "num_envs": 16,
        "batch_size": 8,
        "unroll_length": 32,
        "batch_reuse": 2,
        "learning_rate": 0.00004,
        "momentum": 0.9,
        "epsilon": 0.000001,
        "entropy_cost": 0.003,
        "vtrace_lambda": 0.95,
        "gradients_clipping": 128.0,
        "total_environment_frames": 40_000_000,
    },
}
