"""The relay of an actor host: one connection to each learner for all the host's actors.

    python -m impala_torch.endpoint.relay --key_file=FILE DIR SET=ip:port [SET=ip:port ...]

Actors of worker set SET connect to ``ipc://DIR/set-SET.ipc``, which file permissions protect. Their
messages go to the learner at ``ip:port`` and its answers come back (``messages``: relayed ones),
but for pulls: the relay keeps the newest weights, so that a version crosses the network once for
the host and not once for each actor.

It ends by itself when the learners said that the run has ended: exit code 0, as when a signal ends
it; 2 for bad arguments; 3 when no learner was heard of for --learner_timeout.
"""

import argparse
import logging
import os
import re
import signal
import sys
import time
from typing import NoReturn

import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import local_sockets
from impala_torch.endpoint.relay_set import WorkerSet
from impala_torch.flags.addresses import is_ipc, parse_address
from impala_torch.flags.errors import UserError

log = logging.getLogger(__name__)

LOG_SECS = 60.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Relay:
    """All worker sets of a host, until their runs end or ``stop``."""

    def __init__(
        self,
        directory: str,
        addresses: dict[int, str],
        key_file: str = "",
        learner_timeout_secs: float = 600.0,
        linger_secs: float = 15.0,
    ) -> None:
        """
        Args:
          directory: of the sockets; made if need be.
          addresses: the learners' ``ip:port`` or ``ipc://`` address, by worker set.
          key_file: of the run; may be empty where all learners are of this machine.
          learner_timeout_secs: end when no learner was heard for so long; 0 = never.
          linger_secs: how long to go on when all learners said stop, for actors that come late.

        Raises:
          UserError: one of them cannot be used.
        """
        self._timeout = learner_timeout_secs
        self._linger = linger_secs
        keys = {
            number: curve.for_address(address, key_file) for number, address in addresses.items()
        }
        folder = local_sockets.private_directory(directory)
        paths = {
            number: local_sockets.free_path(folder / f"set-{number}.ipc", "relay")
            for number in addresses
        }
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._context = zmq.Context()
        self._sets: list[WorkerSet] = []
        try:
            for number, address in addresses.items():
                self._sets.append(
                    WorkerSet(self._context, number, paths[number], address, keys[number])
                )
        except UserError:
            for worker_set in self._sets:
                worker_set.close()
            self._context.destroy(linger=0)
            raise

    def stop(self) -> None:
        """Makes ``run`` return; may be called by a signal's handler."""
        os.eventfd_write(self._wake, 1)

    def run(self) -> int:
        """Relays. Returns the exit code."""
        try:
            return self._run()
        finally:
            for worker_set in self._sets:
                worker_set.close()
            self._context.term()

    def _run(self) -> int:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        for worker_set in self._sets:
            poller.register(worker_set.actors, zmq.POLLIN)
            poller.register(worker_set.learner, zmq.POLLIN)
        logged = time.monotonic()
        stopped_at: float | None = None
        while True:
            ready = dict(poller.poll(timeout=200))
            if self._wake in ready:
                return 0
            for worker_set in self._sets:
                if worker_set.learner in ready:
                    worker_set.serve_learner()
                if worker_set.actors in ready:
                    worker_set.serve_actors()
                worker_set.check_pull()
            now = time.monotonic()
            if now - logged > LOG_SECS:
                logged = now
                log.info("%s", "; ".join(map(str, self._sets)))
            if not all(worker_set.stopped for worker_set in self._sets):
                stopped_at = None
            elif stopped_at is None:
                stopped_at = now
            elif now - stopped_at > self._linger:
                log.info("the run has ended; %s", "; ".join(map(str, self._sets)))
                return 0
            silent = now - max(worker_set.heard for worker_set in self._sets)
            if self._timeout and stopped_at is None and silent > self._timeout:
                log.error("no learner was heard for %.0f s", silent)
                return 3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    """Raises UserError."""
    parser = _Parser(
        prog="python -m impala_torch.endpoint.relay",
        description="One connection to each learner for all actors of this host.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="where actors find set-SET.ipc")
    parser.add_argument("sets", metavar="SET=ip:port", nargs="+", help="a worker set's learner")
    parser.add_argument("--key_file", default="", help="file with this host's keys of the run")
    parser.add_argument(
        "--learner_timeout",
        type=_seconds,
        default=600.0,
        help="seconds without a word of any learner after which it ends (3); 0 = never",
    )
    parser.add_argument(
        "--linger",
        type=_seconds,
        default=15.0,
        help="seconds it goes on for late actors when all learners said stop",
    )
    arguments = parser.parse_args(argv)
    arguments.addresses = {}
    for word in arguments.sets:
        number, equals, address = word.partition("=")
        if not equals or not re.fullmatch(r"[0-9]{1,6}", number):
            raise UserError(f"'{word}' is not of the form SET=ip:port")
        if not is_ipc(address):
            parse_address(address, f"worker set {number}")
        if int(number) in arguments.addresses:
            raise UserError(f"worker set {number} is named twice")
        arguments.addresses[int(number)] = address
    return arguments


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def main(argv: list[str]) -> int:
    """Runs a relay. Returns the exit code."""
    logging.basicConfig(
        level=logging.INFO,
        format="[%(asctime)s relay] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    os.umask(0o077)  # the sockets are this user's alone
    try:
        arguments = _parse(argv)
        # Held back until the relay can be told: killed in between, it would leave its sockets.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        relay = Relay(
            os.path.expanduser(arguments.directory),
            arguments.addresses,
            arguments.key_file,
            arguments.learner_timeout,
            arguments.linger,
        )
        for number in _SIGNALS:
            signal.signal(number, lambda *_: relay.stop())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    log.info("serves %s: %s", arguments.directory, " ".join(arguments.sets))
    return relay.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
