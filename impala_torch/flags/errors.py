"""Errors that are the user's to mend, or an environment's."""

import logging


class UserError(Exception):
    """A mistake of the user's, told in a sentence that names the flag, file or host.

    Entry points print it and exit with code 2; nobody gets to see a traceback for it.
    """


class NotMade(UserError):
    """An environment's own code raised while it was made: a mistake of the user's, or something
    that passes, such as a server that is not up yet."""


class EnvironmentFault(RuntimeError):
    """An environment broke its contract; the message says which, where and how."""

    told = False

    def tell(self, log: logging.Logger) -> None:
        """Logs it, once: and where in the environment's code it was, if that raised."""
        if not self.told:
            self.told = True
            log.error("%s", self, exc_info=self.__cause__)
