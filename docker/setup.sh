#!/usr/bin/env bash
# Makes a machine ready: system packages, a virtual environment, PyTorch, Horovod built for it,
# and the rest of requirements.txt. What already stands is left alone, so a second call is quick.
#
#   docker/setup.sh train   what training needs
#   docker/setup.sh test    that, and what the tests and the linters need
#   docker/setup.sh actor   what an actor needs, and no more: neither MPI nor Horovod nor a
#                           compiler, and no root; the host brings python3 with venv, and tmux
#
# VENV names the virtual environment (default: .venv beside this folder; a relative path is one from
# where this is called), PYTHON the interpreter that makes it (default: python3; 3.11 or newer).
# TORCH_INDEX names the package index that PyTorch comes from, for a build of it other than pip's
# own choice. HOROVOD_GPU_OPERATIONS=NCCL builds Horovod for GPUs; CUDA's compiler and NCCL must be
# there.
set -euo pipefail

what=${1:-train}
case "$what" in
  train | test | actor) ;;
  *) echo "setup.sh: '$what' is none of 'train', 'test' and 'actor'" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
# What is built in folders of its own must find it too.
[[ $venv = /* ]] || venv=$PWD/$venv
python=${PYTHON:-python3}
log=$venv/setup.log

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
fail() { echo "setup.sh: $*" >&2; exit 1; }

# Output of a step goes to the log; only a step that fails shows its end.
quietly() {
  if ! "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    fail "failed: $*  (whole output: $log)"
  fi
}

# --- system packages -------------------------------------------------------------------------

installed() {
  dpkg-query -W -f='${Status}\n' "$1" 2>/dev/null | grep -q '^install ok installed$'
}

# Installs what is missing; the packages must exist, and root or sudo be there.
install_packages() {
  local package missing=() as_root=()
  for package in "$@"; do
    installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "system packages: ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      fail "these packages are missing and only root can install them: ${missing[*]}"
    as_root=(sudo)
  fi
  quietly "${as_root[@]}" apt-get update
  quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
}

mkdir -p "$venv"
if [ "$what" = actor ]; then
  command -v "$python" >/dev/null ||
    fail "there is no '$python' here: install Python 3.11 or newer, or name it in PYTHON"
  command -v tmux >/dev/null ||
    fail "tmux is missing here, and actors run in it: have root install the package tmux"
else
  packages=(openmpi-bin libopenmpi-dev openssh-client cmake g++ make git tmux)
  [ "$what" = test ] && packages+=(openssh-server iproute2 procps)
  # Debian's own interpreter needs two packages more; another one brings what they hold.
  if [ "$("$python" -c 'import sys; print(sys.executable)')" = /usr/bin/python3 ]; then
    packages+=(python3-venv python3-dev)
  fi
  install_packages "${packages[@]}"
fi
# Slurm is for its own tests alone, which are skipped, and say so, where it cannot be installed.
if [ "$what" = test ]; then
  (install_packages slurm-wlm munge) 2>>"$log" || say "going on without Slurm (see $log)"
fi

# --- Python ----------------------------------------------------------------------------------

# A stamp holds the hash of what a step was made from: an edited file makes its step run again.
done_before() { [ -f "$venv/$1.stamp" ] && [ "$(cat "$venv/$1.stamp")" = "$2" ]; }
mark_done() { printf '%s' "$2" >"$venv/$1.stamp"; }
hash_of() { cat "$@" | sha256sum | cut -c1-64; } # of what they hold, wherever they are

# Debian's python3 makes no environment with pip unless python3-venv is there; a pip of its own
# can put one into an environment that has none.
make_actors_venv() {
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: name Python 3.11 or newer in PYTHON"
  "$python" -m venv "$venv" >>"$log" 2>&1 && return
  { "$python" -m venv --without-pip "$venv" &&
    "$python" -m pip --python "$venv/bin/python" install --disable-pip-version-check pip
  } >>"$log" 2>&1 ||
    fail "$python makes no virtual environment with pip: have root install the package python3-venv" \
      "(whole output: $log)"
}

if [ "$what" = actor ]; then
  # An environment without pip is one whose making was broken off.
  if [ ! -x "$venv/bin/pip" ]; then
    say "virtual environment: $venv"
    make_actors_venv
  fi
elif [ ! -x "$venv/bin/python" ]; then
  say "virtual environment: $venv"
  quietly "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)

requirements=$root/requirements.txt
[ "$what" = actor ] && requirements=$root/docker/requirements-actor.txt
torch=$(grep -E '^torch==' "$requirements")
torch_key=$torch${TORCH_INDEX:+ from $TORCH_INDEX}
if ! done_before torch "$torch_key"; then
  say "PyTorch ($torch)"
  from=()
  if [ -n "${TORCH_INDEX:-}" ]; then
    from=(--index-url "$TORCH_INDEX")
    # To pip, another build of the version that is there is no reason to change it.
    [ -f "$venv/torch.stamp" ] && from+=(--force-reinstall)
  fi
  # First and exactly pinned, so that nothing that depends on torch picks another build.
  quietly "${pip[@]}" "${from[@]}" "$torch"
  mark_done torch "$torch_key"
fi

if [ "$what" = actor ]; then
  key=$(hash_of "$requirements")
  if ! done_before actor "$key"; then
    say "docker/requirements-actor.txt"
    quietly "${pip[@]}" -r "$requirements"
    mark_done actor "$key"
  fi
  say "ready for actors: $venv"
  exit
fi

key=$(hash_of "$requirements")
if ! done_before requirements "$key"; then
  say "requirements.txt"
  quietly "${pip[@]}" -r "$requirements"
  mark_done requirements "$key"
fi

# On GPUs Horovod averages with NCCL, where it was built so; the build is one of its own.
gpu=${HOROVOD_GPU_OPERATIONS:-}
key="$torch_key $(hash_of "$root/docker/requirements-horovod.txt")${gpu:+ $gpu}"
if ! done_before horovod "$key"; then
  say "Horovod, built from source for this PyTorch and Open MPI (about 3 minutes)"
  quietly "${pip[@]}" -r "$root/docker/requirements-horovod.txt" 'setuptools<81' wheel packaging
  # Horovod 0.28.1 asks for C++14, this PyTorch's headers for C++17: the last -std wins.
  wrapper=$venv/bin/horovod-c++
  printf '#!/bin/sh\nexec g++ "$@" -std=c++17\n' >"$wrapper"
  chmod +x "$wrapper"
  quietly env CXX="$wrapper" MAKEFLAGS="-j$(nproc)" \
    PATH="$venv/bin:$PATH" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 \
    HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    ${gpu:+HOROVOD_GPU_OPERATIONS="$gpu"} \
    "${pip[@]}" --no-build-isolation --no-deps --no-cache-dir --force-reinstall horovod==0.28.1
  quietly "$venv/bin/python" -c 'import torch, horovod.torch'
  mark_done horovod "$key"
fi

if [ "$what" = test ]; then
  key=$(hash_of "$root/tests/requirements.txt")
  if ! done_before tests "$key"; then
    say "tests/requirements.txt"
    quietly "${pip[@]}" -r "$root/tests/requirements.txt"
    mark_done tests "$key"
  fi
fi
say "ready: $venv"
