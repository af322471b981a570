#!/usr/bin/env bash
# Runs a command as keep_log.sh does, and starts it again when it dies: what kills an actor, such as
# a crash of its emulator or a lack of memory, should cost the run a few seconds of it and no more.
#
#   bash keep_going.sh LOG COMMAND [ARGUMENT...]
#
# Pauses of 1, 2, 4, ... 60 seconds lie between the starts, and 1 again after a command that ran for
# longer than a minute. One that fails so often in a row, each time within a minute, would do so for
# ever, and is given up. In a window of tmux, options of its pane tell how often the command was
# started again (@restarts) and the exit code before that (@last_exit).
#
# Exit codes, all of them the command's but for 6 and Ctrl-C:
#   0    the run has ended
#   2    a mistake in the flags: the next start would make it again
#   3    the learner is gone for good
#   6    it failed 20 times in a row in less than a minute each (this script's own exit code)
#   130  Ctrl-C, in the command or in a pause, whatever the command makes of it
#
# For tests: KEEP_GOING_UNIT is what sleep(1) gets behind the pause's number (default: s), and
# KEEP_GOING_LONG_SECS is how long a command must run for its next pause to be short (default: 60),
# and KEEP_GOING_TRIES how many short ones in a row are enough (default: 20).

# The braces have bash read all of this before it runs any of it: it runs for days, and the file may
# be replaced by a newer one meanwhile.
{
  . "$(dirname "${BASH_SOURCE[0]}")/log.sh"
  unit=${KEEP_GOING_UNIT:-s}
  long_secs=${KEEP_GOING_LONG_SECS:-60}
  tries=${KEEP_GOING_TRIES:-20}

  # bash waits for what is in the foreground before it does this, so the command ends first. Without
  # it, Ctrl-C that a command handles would count as the command's affair, and the loop go on.
  trap 'exit 130' INT
  delay=1
  count=0
  short=0
  while :; do
    begun=$SECONDS
    logged "${@:2}"
    code=$?
    case $code in
      0 | 2 | 3 | 130) exit "$code" ;;
    esac
    count=$((count + 1))
    short=$((short + 1))
    if [ $((SECONDS - begun)) -gt "$long_secs" ]; then
      delay=1
      short=0
    fi
    if [ "$short" -ge "$tries" ]; then
      logged echo "[keep going] exit code $code; given up: it failed $short times in a row in less" \
        "than $long_secs s each; --action=heal tries again"
      exit 6
    fi
    if [ -n "$TMUX_PANE" ]; then
      tmux set-option -p -t "$TMUX_PANE" @restarts "$count"
      tmux set-option -p -t "$TMUX_PANE" @last_exit "$code"
    fi
    logged echo "[keep going] exit code $code; starting again in $delay $unit"
    sleep "$delay$unit"
    delay=$((delay * 2 > 60 ? 60 : delay * 2))
  done
}
