"""What shells run for a run, as files: in its windows, and as a rank on Slurm's nodes.

They are part of the project's folder, which every host has, and are called as ``bash FILE``: no
file needs permission to be executed, and none changes the folder that it is called in.
"""

import pathlib

FOLDER = "frontend/scripts"  # in the project's folder, on any host
HERE = pathlib.Path(__file__).resolve().parent
