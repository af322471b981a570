"""``python -m impala_torch`` by the name that users and the frontend call it, from any folder."""

import sys

from impala_torch import __main__ as program

__doc__ = program.__doc__  # what --help prints is the program's

if __name__ == "__main__":
    program.run_process(sys.argv)
