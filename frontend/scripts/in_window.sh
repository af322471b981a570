#!/usr/bin/env bash
# Runs the command of a tmux window: a clean end closes the window, and after another its exit code
# is left in an option of the pane, @exit_code. tmux itself can keep failed windows and tell their
# status, but where a pane's terminal closes before its process is reaped, it takes a failure for a
# clean end, or never tells.
#
#   bash in_window.sh COMMAND [ARGUMENT...]     in a pane of tmux
#
# The exit code is the command's.

# The braces have bash read all of this before it runs any of it: the command may take days, and
# the file be replaced by a newer one meanwhile.
{
  # Ctrl-C is for the command; this must live to tell its exit code. An ignored signal would be
  # ignored by the command too, a trapped one is not.
  trap : INT
  # Ctrl-S would stop what is shown, and in the end who shows it.
  stty -ixon 2>/dev/null
  "$@"
  code=$?
  if [ "$code" -eq 0 ]; then
    tmux kill-pane -t "$TMUX_PANE"
  else
    tmux set-option -p -t "$TMUX_PANE" @exit_code "$code"
  fi
  exit "$code"
}
