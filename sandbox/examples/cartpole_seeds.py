"""CartPole with four seeds, for python -m impala_torch.runner: see sandbox/runner.md."""

from impala_torch.runner import Experiment, ParamGrid, RunDescription

_COMMAND = (
    "python experiment.py --level_name=CartPole-v1 --agent_name=MLPAgent --batch_size=16 "
    "--unroll_length=20 --num_envs=8 --reward_clipping=none --entropy_cost=0.01 "
    "--learning_rate=0.002 --epsilon=0.01 --gradients_clipping=40 "
    "--total_environment_frames=300000 --num_actors=1 --learner_threads=1 --progress_secs=1"
)
_SEEDS = ParamGrid([("seed", [1, 2, 3, 4])])

RUN_DESCRIPTION = RunDescription(
    "cartpole_seeds",
    experiments=[Experiment("cartpole", _COMMAND, _SEEDS.generate_params(randomize=False))],
)
