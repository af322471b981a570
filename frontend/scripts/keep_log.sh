#!/usr/bin/env bash
# Runs a command and keeps what it says: shown, and appended to a log.
#
#   bash keep_log.sh LOG COMMAND [ARGUMENT...]
#
# LOG may begin with ~/, this host's home; its folder is made. The exit code is the command's
# (128 + n where signal n ended it), so that whoever looks at the window sees the command's end.

# The braces have bash read all of this before it runs any of it: the command may take days, and
# the file be replaced by a newer one meanwhile.
{
  . "$(dirname "${BASH_SOURCE[0]}")/log.sh"
  # Ctrl-C is for the command. Without a trap bash dies of one that comes before it waits for the
  # command; an ignored signal would be ignored by the command too, a trapped one is not.
  trap : INT
  logged "${@:2}"
  exit
}
