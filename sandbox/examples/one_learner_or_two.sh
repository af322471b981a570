#!/usr/bin/env bash
# CartPole by one learner of B = 16 and by two of B = 8, three seeds each: the curves lie on each
# other. From the project's folder, about 10 minutes; the runs are in train_dir/learners.
#
#   bash sandbox/examples/one_learner_or_two.sh
set -euo pipefail

python=${PYTHON:-.venv/bin/python}

train() { # SEED BATCH_SIZE CSV LOGDIR
  "$python" run_experiment_mm_raw.py --follow --noskip_check --tmux_sess=learners \
    --workers_csv_path="$3" --seed="$1" --batch_size="$2" --logdir="$4" \
    --level_name=CartPole-v1 --agent_name=MLPAgent --unroll_length=20 --num_envs=8 \
    --reward_clipping=none --entropy_cost=0.01 --epsilon=0.01 --learning_rate=0.002 \
    --gradients_clipping=40 --total_environment_frames=400000 --progress_secs=2
}

for seed in 1 2 3; do
  train "$seed" 16 sandbox/local_one_learner_example.csv "train_dir/learners/one/$seed"
  train "$seed" 8 sandbox/local_workers_example.csv "train_dir/learners/two/$seed"
done
