#!/usr/bin/env bash
# Makes a machine ready: system packages, a virtual environment, PyTorch, Horovod built for it,
# and the rest of requirements.txt. What already stands is left alone, so a second call is quick.
#
#   docker/setup.sh train   what training needs
#   docker/setup.sh test    that, and what the tests and the linters need
#
# VENV names the virtual environment (default: .venv beside this folder), PYTHON the interpreter
# that makes it (default: python3, version 3.11).
set -euo pipefail

what=${1:-train}
case "$what" in
  train | test) ;;
  *) echo "setup.sh: '$what' is neither 'train' nor 'test'" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}
log=$venv/setup.log

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }

# Output of a step goes to the log; only a step that fails shows its end.
quietly() {
  if ! "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "setup.sh: failed: $*  (whole output: $log)" >&2
    exit 1
  fi
}

# --- system packages -------------------------------------------------------------------------

packages=(openmpi-bin libopenmpi-dev openssh-client cmake g++ make git tmux)
[ "$what" = test ] && packages+=(openssh-server iproute2 procps)
# Debian's own interpreter needs two packages more; another one brings what they hold.
if [ "$("$python" -c 'import sys; print(sys.executable)')" = /usr/bin/python3 ]; then
  packages+=(python3-venv python3-dev)
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
    missing+=("$package")
done
mkdir -p "$venv"
if [ ${#missing[@]} -gt 0 ]; then
  say "system packages: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "setup.sh: these packages are missing and only root can install them: ${missing[*]}" >&2
      exit 1
    }
    as_root=(sudo)
  fi
  quietly "${as_root[@]}" apt-get update
  quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}"
fi

# --- Python ----------------------------------------------------------------------------------

# A stamp holds the hash of what a step was made from: an edited file makes its step run again.
done_before() { [ -f "$venv/$1.stamp" ] && [ "$(cat "$venv/$1.stamp")" = "$2" ]; }
mark_done() { printf '%s' "$2" >"$venv/$1.stamp"; }
hash_of() { sha256sum "$@" | sha256sum | cut -c1-64; }

if [ ! -x "$venv/bin/python" ]; then
  say "virtual environment: $venv"
  quietly "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)

torch=$(grep -E '^torch==' "$root/requirements.txt")
if ! done_before torch "$torch"; then
  say "PyTorch ($torch)"
  # First and exactly pinned, so that nothing that depends on torch picks another build.
  quietly "${pip[@]}" "$torch"
  mark_done torch "$torch"
fi

key=$(hash_of "$root/requirements.txt")
if ! done_before requirements "$key"; then
  say "requirements.txt"
  quietly "${pip[@]}" -r "$root/requirements.txt"
  mark_done requirements "$key"
fi

key="$torch $(hash_of "$root/docker/requirements-horovod.txt")"
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
