#!/usr/bin/env bash
# What a new user does: the wheel into a fresh virtual environment, then everything from an empty directory.
#   tests/wheel/smoke.sh [folder]
# The folder (a temporary one by default, removed at the end) receives the environment and the results. PYTHON
# chooses the interpreter.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/work"
export MUJOCO_GL=egl MPLBACKEND=agg PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

step() { echo "--- $*"; "$@" > "$folder/output" 2>&1 || { cat "$folder/output"; exit 1; }; }
check() { python "$root/tests/wheel/check.py" "$@"; }

step "${PYTHON:-python3}" -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
step pip install "$(grep '^torch==' "$root/constraints.txt")"
step pip install -c "$root/constraints.txt" build
step python -m build --wheel --outdir "$folder/dist" "$root"
step pip install -c "$root/constraints.txt" "$(echo "$folder"/dist/*.whl)[zoo]"

cd "$folder/work"
for algo in trpl fixpo; do
  step sb3-trl train --algo $algo --env Pendulum-v1 -n 20000 --seed 0 --eval-freq 5000 --tensorboard-log runs
  step sb3-trl enjoy --algo $algo --env Pendulum-v1 -f logs -n 1000 --no-render --reward-log rewards/$algo
  step sb3-trl plot-train -a $algo -e Pendulum-v1 -f logs -w 20
done
step sb3-trl record-video --algo trpl --env Pendulum-v1 -f logs -n 100
step sb3-trl train --algo fixpo --env Pendulum-v1 -n 2048 -optimize --n-trials 2 --n-evaluations 1 \
  --storage sqlite:///study.db --study-name pendulum --no-optim-plots -params n_envs:1
step sb3-trl all-plots -a trpl fixpo -e Pendulum-v1 -f logs --no-display -o results
check
