"""Starts a run of learners and actors, as a CSV file lists them, in a tmux session.

    python run_experiment_mm_raw.py --workers_csv_path=sandbox/local_workers_example.csv \\
        --level_name=PongNoFrameskip-v4 --batch_size=32 --total_environment_frames=20000000

All flags of training reach the workers. --dry_run prints the commands and starts nothing;
--follow shows the learners' progress until the run has ended. --helpfull explains every flag.
"""

import sys

from absl.flags import FLAGS

from frontend import flags, follow, run, tmux
from impala_torch import config as config_lib
from impala_torch.config import UserError


def main(argv: list[str]) -> int:
    """Starts what the flags say. Returns the exit code: 2 for bad input."""
    try:
        flags.define_flags()
        config_lib.define_flags(skip=config_lib.PER_PROCESS)
        config_lib.parse_flags(argv)
        return _run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run() -> int:
    config = config_lib.from_flags()
    if not FLAGS.workers_csv_path:
        raise UserError(
            "--workers_csv_path is missing: name the CSV file of the run's workers, such as "
            "sandbox/local_workers_example.csv"
        )
    plan = run.plan(FLAGS.workers_csv_path, config)
    if FLAGS.dry_run:
        print(run.describe(plan))
        return 0
    session = tmux.Session(FLAGS.tmux_sess)
    begin = follow.end_of_log(plan.logs)
    run.start(plan, session)
    print(run.summary(plan, session.name), flush=True)
    return follow.follow(session, plan.logs, begin) if FLAGS.follow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
