#!/usr/bin/env bash
# Runs the program of its task's rank: srun starts the same command for all tasks of a step, and
# learners differ in their flags.
#
#   srun ... bash by_rank.sh PROGRAM [ARGUMENT...] [:: PROGRAM [ARGUMENT...]]...
#
# The programs are by rank, with a "::" between them; mpirun's own ":" would have srun, which looks
# for one in the words of its program too, ask for more nodes. The exit code is the program's; 2
# where there is none for the rank.

# mpirun sets it before a rank starts, Slurm's PMIx only in MPI_Init; learners look at it earlier.
export OMPI_COMM_WORLD_SIZE=$SLURM_NTASKS

for ((rank = 0; rank < SLURM_PROCID; rank++)); do
  while [ $# -gt 0 ] && [ "$1" != :: ]; do shift; done
  shift
done
program=()
for word in "$@"; do
  [ "$word" != :: ] || break
  program+=("$word")
done
if [ ${#program[@]} -eq 0 ]; then
  echo "by_rank.sh: there is no program for rank $SLURM_PROCID" >&2
  exit 2
fi
exec "${program[@]}"
