"""The frontend's own flags; those of training are ``impala_torch.config``'s."""

from absl import flags

_CHAPTER = "starting a run"


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Declares them, as a chapter of their own in --helpfull."""
    flags.DEFINE_string(
        "workers_csv_path",
        "",
        "CSV file of the run's workers, one a row, with the columns job, ip, tf_port, "
        "cuda_visible_devices, ssh_port, ssh_username, ssh_password (the last four may be "
        "empty); see sandbox/local_workers_example.csv.",
        flag_values=flag_values,
        module_name=_CHAPTER,
    )
    flags.DEFINE_string(
        "tmux_sess",
        "impala",
        "Name of the tmux session to start.",
        flag_values=flag_values,
        module_name=_CHAPTER,
    )
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Print every command and start nothing.",
        flag_values=flag_values,
        module_name=_CHAPTER,
    )
    flags.DEFINE_boolean(
        "follow",
        False,
        "Show the learners' progress here until the run has ended; Ctrl-C stops the run, which "
        "then writes its checkpoint.",
        flag_values=flag_values,
        module_name=_CHAPTER,
    )
