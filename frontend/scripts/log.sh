#!/usr/bin/env bash
# What keep_log.sh and keep_going.sh share. They source it with their own arguments; run by itself
# it does nothing but make the log's folder.
#
#   . log.sh LOG ...
#
# Sets `log`, a path that may be used as it is, and the function `logged`.

# A ~ that was quoted on its way here is the home of this host, of which who sent it knows nothing.
log=${1/#\~\//$HOME/}
mkdir -p "$(dirname "$log")"

# Runs a command, shows what it says, appends that to the log, and returns the command's exit code.
logged() {
  "$@" 2>&1 | keep
  return "${PIPESTATUS[0]}"
}

# Shows its input and appends it to the log. Where that cannot be written, as on a full disk, the
# input is shown all the same, and the log is tried again a while later.
keep() {
  # Ctrl-C reaches what keeps the log as well; it would end, and what the command says while it
  # ends would be lost, or kill it.
  trap '' INT
  tee -a --output-error=exit "$log" && return
  while show_for_a_while; do
    tee -a --output-error=exit "$log" 2>/dev/null && return
  done
}

# Fails where all was shown, or nobody is there to see it. (timeout hands Ctrl-C on to what it runs,
# whether that is ignored here or not.)
show_for_a_while() {
  timeout --foreground "${KEEP_LOG_PAUSE:-10}" env --ignore-signal=INT cat
  [ $? = 124 ]
}
