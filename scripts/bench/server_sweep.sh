#!/usr/bin/env bash
# Starts a server, waits until it answers, runs loadgen.py in several shapes, stops it. One JSON
# object a line goes to standard output; the first has the start-up time.
#
#   server_sweep.sh LABEL HEALTH_URL BASE_URL -- SERVER COMMAND ...
#   server_sweep.sh llama http://127.0.0.1:8080/health http://127.0.0.1:8080 -- \
#       llama-server -m M.gguf -t 2 -np 8 -c 16384 --port 8080
#
#   CONC="1 4 8"  REQS=16  MAXTOK=64  WORDS=100  TURNS=4  EXTRA='{"ignore_eos":true}'
#   LOG=/dev/null  WAIT=60 (seconds for the start)
set -euo pipefail
[ $# -ge 5 ] || {
    echo "usage: server_sweep.sh LABEL HEALTH_URL BASE_URL -- SERVER COMMAND ..." >&2
    exit 2
}
LABEL=$1 HEALTH=$2 BASE=$3
shift 3
[ "$1" = -- ] && shift
HERE=$(cd "$(dirname "$0")" && pwd)
REQS=${REQS:-16} WORDS=${WORDS:-100} TURNS=${TURNS:-4}
EXTRA=${EXTRA:-'{"ignore_eos":true}'}

# Whether the server answers 200.
is_up() {
    python3 - "$HEALTH" <<'PY'
import sys, urllib.request
try:
    sys.exit(0 if urllib.request.urlopen(sys.argv[1], timeout=1).status == 200 else 1)
except OSError:
    sys.exit(1)
PY
}

# One run of the load generator with what all runs share.
load() {
    python3 "$HERE/loadgen.py" --url "$BASE" --prompt-words "$WORDS" --extra "$EXTRA" \
        --pid "$PID" "$@"
}

begun=$(date +%s%N)
"$@" >"${LOG:-/dev/null}" 2>&1 &
PID=$!
trap 'kill $PID 2>/dev/null; wait $PID 2>/dev/null || true' EXIT
for _ in $(seq $((${WAIT:-60} * 100))); do
    if is_up; then break; fi
    kill -0 $PID || exit 1
    sleep 0.01
done
is_up || {
    echo "the server did not answer at $HEALTH" >&2
    exit 1
}
printf '{"label":"%s","startup_s":%se-3}\n' "$LABEL" $((($(date +%s%N) - begun) / 1000000))
for clients in ${CONC:-1 4 8}; do
    load --label "$LABEL/c$clients" --concurrency "$clients" \
        --requests $((clients * 2 > REQS ? clients * 2 : REQS)) \
        --seed $((clients * 100 + 1)) --max-tokens "${MAXTOK:-64}"
done
if [ "$TURNS" -gt 1 ]; then
    load --label "$LABEL/turns" --concurrency 1 --requests 3 --multi-turn "$TURNS" \
        --seed 7001 --max-tokens 32
fi
