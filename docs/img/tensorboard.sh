#!/usr/bin/env bash
# Draws tensorboard.png: two short runs, and TensorBoard in a headless browser.
#   docs/img/tensorboard.sh [picture]
# Needs sb3-trl on the path and Chromium (CHROMIUM=… chooses another command).
set -euo pipefail
picture=$(realpath "${1:-$(dirname "$0")/tensorboard.png}")
folder=$(mktemp -d)
cd "$folder"
trap 'kill "${server:-}" 2> /dev/null || true; rm -rf "$folder"' EXIT
sb3_trl="python -m sb3_trl.cli"
port=${PORT:-6017}

common="--env Pendulum-v1 --seed 0 --eval-freq 5000 --tensorboard-log runs --device cpu"
$sb3_trl train --algo trpl $common -n 40000 -params entropy_schedule:"'exp'" temperature:0.6 > trpl.log
$sb3_trl train --algo fixpo $common -n 60000 > fixpo.log

tensorboard --logdir runs --port "$port" > server.log 2>&1 &
server=$!
until curl --silent --fail "http://localhost:$port/data/runs" 2> /dev/null | grep -q FixPO_1; do sleep 1; done
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
  --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$folder/profile" \
  --window-size=1400,1310 --virtual-time-budget=30000 --screenshot="$picture" \
  "http://localhost:$port/#custom_scalars" 2> browser.log
