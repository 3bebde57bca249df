#!/usr/bin/env bash
# What a new user does: the wheel into a fresh virtual environment, then everything from an empty directory, and the
# exported policy into a third environment, which has neither the wheel nor torch.
#   tests/wheel/smoke.sh [folder]
# The folder (a temporary one by default, removed at the end) receives the environments and the results. PYTHON
# chooses the interpreter.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/work"
export MUJOCO_GL=egl MPLBACKEND=agg PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

step() { echo "--- $*"; "$@" > "$folder/output" 2>&1 || { cat "$folder/output"; exit 1; }; }
environment() { step "${PYTHON:-python3}" -m venv "$folder/$1"; }
# pip of an environment, with the pinned versions
install() { step "$folder/$1/bin/pip" install -c "$root/constraints.txt" "${@:2}"; }

environment tools
install tools build twine
step "$folder/tools/bin/python" -m build --outdir "$folder/dist" "$root"
step "$folder/tools/bin/twine" check --strict "$folder"/dist/*
wheel=$(echo "$folder"/dist/*.whl)

environment venv
install venv "$(grep '^torch==' "$root/constraints.txt")"
install venv "${wheel}[zoo]"
export PATH="$folder/venv/bin:$PATH"

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
python "$root/tests/wheel/check.py"

install venv "${wheel}[export]"
step sb3-trl export --algo trpl --env Pendulum-v1 -f logs --format onnx -o pendulum.onnx
step python "$root/tests/wheel/episode.py" episode.npz
environment robot
install robot numpy onnxruntime
"$folder/robot/bin/python" "$root/tests/wheel/robot.py" pendulum.onnx episode.npz
