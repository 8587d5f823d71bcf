#!/usr/bin/env bash
# llama-bench (pp512/tg128 at 1 and 2 threads) and llama-batched-bench (1 to 16 sequences), one JSON
# object a line.
#
#   BIN=dir with the binaries   bench_llamacpp.sh MODEL.gguf [MODEL.gguf ...]
#   THREADS="1,2" REPS=5 NPL="1,2,4,8,16" NPP=128 NTG=64
set -euo pipefail
BIN=${BIN:?set BIN to the build/bin folder of llama.cpp}

# Medians of llama-bench's samples.
medians() {
    python3 -c '
import json, sys
for line in sys.stdin:
    d = json.loads(line)
    s = sorted(d["samples_ts"])
    test = "pp%d" % d["n_prompt"] if d["n_prompt"] else "tg%d" % d["n_gen"]
    print(json.dumps({
        "model": d["model_filename"].split("/")[-1], "t": d["n_threads"], "test": test,
        "median_tok_s": round(s[len(s) // 2], 1), "max": round(s[-1], 1), "min": round(s[0], 1)}))'
}

# The speeds of llama-batched-bench.
speeds() {
    python3 -c '
import json, sys
for line in sys.stdin:
    if line.strip().startswith("{"):
        d = json.loads(line)
        print(json.dumps({
            "batched_seqs": d["pl"], "t": d["n_threads"],
            "pp_tok_s": round(d["speed_pp"], 1), "tg_tok_s": round(d["speed_tg"], 1)}))'
}

threads=${THREADS:-1,2}
for model in "$@"; do
    "$BIN/llama-bench" -m "$model" -p 512 -n 128 -t "$threads" -r "${REPS:-5}" -o jsonl \
        2>/dev/null | medians
    "$BIN/llama-batched-bench" -m "$model" -c 8192 -b 2048 -ub 512 -npp "${NPP:-128}" \
        -ntg "${NTG:-64}" -npl "${NPL:-1,2,4,8,16}" -t "${threads##*,}" \
        --output-format jsonl 2>/dev/null | speeds
done
