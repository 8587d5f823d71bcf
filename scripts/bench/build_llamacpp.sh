#!/usr/bin/env bash
# Builds llama.cpp (llama-bench, -batched-bench, -perplexity, -quantize, -server) from the source
# that the llama-cpp-python sdist on PyPI carries. Needs python3 and gcc/g++. Binaries:
# $DEST/build/bin
#
#   DEST=dir        where to work (default: ./llamacpp)
#   VERSION=x.y.z   version of the sdist (default: newest)
#   JOBS=n          parallel compile jobs (default: nproc)
#   EXTRA="..."     more cmake flags, such as -DGGML_OPENMP=OFF
set -euo pipefail
DEST=${DEST:-$PWD/llamacpp}
JOBS=${JOBS:-$(nproc)}

# Unpacks llama.cpp's source into src.
fetch_source() {
    # --no-binary for this package only: ":all:" would compile cmake itself from source.
    pip download -q -d sdist --no-deps --no-build-isolation --no-binary llama-cpp-python \
        "llama-cpp-python${VERSION:+==$VERSION}"
    mkdir -p unpack
    tar xzf sdist/llama_cpp_python-*.tar.gz -C unpack
    mv unpack/*/vendor/llama.cpp src
    rm -rf src/.git unpack # a dangling .git file makes ninja reconfigure for ever
}

# gcc 12 drops the stores to the AMX tile configuration (its ldtilecfg operand is 8 bytes wide), so
# that an AMX build dies of SIGILL; a barrier makes them stay. GGML_NO_AMX=1 in the environment
# switches AMX off at run time, for A/B runs.
mend_amx() {
    python3 - src/ggml/src/ggml-cpu/amx <<'PY'
import pathlib, sys
amx = pathlib.Path(sys.argv[1])
load = "    _tile_loadconfig(&tc);"
barrier = '    __asm__ volatile("" : : "r"(&tc) : "memory");\n'
kernels = amx / "mmq.cpp"
kernels.write_text(kernels.read_text().replace("\n" + load, "\n" + barrier + load))
switch = "    if (syscall(SYS_arch_prctl"
off = '    if (getenv("GGML_NO_AMX")) { return false; }\n'
start = amx / "amx.cpp"
start.write_text("#include <cstdlib>\n" + start.read_text().replace(switch, off + switch, 1))
PY
}

mkdir -p "$DEST"
cd "$DEST"
if [ ! -x venv/bin/cmake ]; then
    python3 -m venv venv
    venv/bin/pip install -q cmake ninja scikit-build-core
fi
export PATH="$DEST/venv/bin:$PATH"
if [ ! -d src ]; then
    fetch_source
    mend_amx
    # Dates in the future make ninja reconfigure as well.
    find src -exec touch -h -d '2026-01-01' {} +
fi
# shellcheck disable=SC2086 # EXTRA holds several flags
cmake -S src -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    ${EXTRA:-} >cmake.log
cmake --build build -j"$JOBS" \
    --target llama-bench llama-batched-bench llama-perplexity llama-quantize llama-server
ls -l build/bin
