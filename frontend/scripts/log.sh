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
  # Ctrl-C reaches tee as well; without -i it would end, and what the command says while it ends
  # would be lost, or kill it.
  "$@" 2>&1 | tee -i -a "$log"
  return "${PIPESTATUS[0]}"
}
