"""What a process's exit code says: the one home of these numbers."""

FINISHED = 0
FAILED = 1  # an error, told in the log
USERS_MISTAKE = 2  # flags or files that starting again would not mend
LEARNER_GONE = 3  # an actor, of whose learner nothing was heard
NOT_FINITE = 4  # training stopped: its numbers were not finite, again and again
STALLED = 5  # a learner that ended itself, since its group stood still
GIVEN_UP = 6  # of a command that failed at once, again and again (frontend/scripts/keep_going.sh)
INTERRUPTED = 130  # Ctrl-C
