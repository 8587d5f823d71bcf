#!/usr/bin/env python3
"""Runs the engine's tile functions in an emulated processor that has AMX, bit for bit.

    emulated.py PROGRAM --emulator FOLDER --guest IMAGE [--cases N] [--seed S]

PROGRAM is the engine's unit test program: the functions' machine code is copied out of it by the
names `tally_amx_*`. FOLDER is an unpacked Bochs with the libraries that it wants, IMAGE the
assembled guest.s. Ends with one line of JSON; exit code 1 where any bit differs.
scripts/check-amx.sh prepares all of it.
"""

import argparse
import json
import os
import pty
import random
import re
import secrets
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

# As guest.s has them.
SET_UP, DOTS, GIVE_BACK = 0x1000, (0x1400, 0x1800), 0x1C00
SETTING, COUNT, CASES, BOOT = 0x2000, 0x2040, 0x10000, 0x70000
ROOM = 0x400

ROWS, LANES, BLOCK = 16, 16, 32
CASE_BYTES = ROWS * BLOCK + LANES * BLOCK
DOTS_BYTES = ROWS * LANES * 4
CASES_OF_A_RUN = (BOOT - CASES) // CASE_BYTES

# Bochs takes much less; a guest that never ends must not hang a test run.
SECONDS_OF_A_RUN = 300

CONFIG = """cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
megs: 64
romimage: file=rom.bin
vgaromimage: file=vga.bin
port_e9_hack: enabled=1
display_library: term
log: bochs.log
panic: action=fatal
error: action=report
info: action=ignore
"""


def main():
    args = arguments()
    program = Program(Path(args.program))
    functions = {
        SET_UP: program.function("tally_amx_set_up", ["ldtilecfg"]),
        DOTS[0]: program.dots("tally_amx_dots_0"),
        DOTS[1]: program.dots("tally_amx_dots_1"),
        GIVE_BACK: program.function("tally_amx_give_back", ["tilerelease"]),
    }
    image = bytearray(Path(args.guest).read_bytes())
    for at, code in functions.items():
        assert len(code) <= ROOM, f"{len(code)} bytes don't fit the image"
        image[at : at + len(code)] = code
    setting = program.bytes_of("TALLY_AMX_SETTING")
    assert len(setting) == 64, "a setting of tiles has 64 bytes"
    image[SETTING : SETTING + 64] = setting

    seed = args.seed if args.seed is not None else secrets.randbits(32)
    print(f"seed {seed}", file=sys.stderr)
    cases = list(all_cases(random.Random(seed), args.cases))
    results = []
    for first in range(0, len(cases), CASES_OF_A_RUN):
        of_run = cases[first : first + CASES_OF_A_RUN]
        results += run(Path(args.emulator).resolve(), bytes(image), of_run)
    sys.exit(judge(cases, results, seed))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--emulator", required=True, metavar="FOLDER")
    parser.add_argument("--guest", required=True, metavar="IMAGE")
    parser.add_argument("--cases", type=int, default=1200)
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    if args.cases < 1:
        parser.error("--cases must be at least 1")
    return args


class Program:
    """An ELF file for x86-64 with its symbols."""

    def __init__(self, path):
        self.path = path
        self.data = path.read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            sys.exit(f"{path} is no 64-bit ELF program")
        offset, size, count = struct.unpack_from("<40xQ10xHH", self.data, 0)
        self.sections = [
            struct.unpack_from("<IIQQQQIIQQ", self.data, offset + i * size) for i in range(count)
        ]
        self.symbols = {}
        for kind, at, length, link in [(s[1], s[4], s[5], s[6]) for s in self.sections]:
            if kind != 2:
                continue
            names = self.sections[link][4]
            for entry in range(at, at + length, 24):
                name, _, _, section, value, size = struct.unpack_from("<IBBHQQ", self.data, entry)
                end = self.data.index(b"\0", names + name)
                self.symbols[self.data[names + name : end]] = (section, value, size)

    def bytes_of(self, name):
        """What the symbol names, as the file has it."""
        if name.encode() not in self.symbols:
            sys.exit(f"{self.path} has no {name}: is it the engine's unit test program?")
        section, value, size = self.symbols[name.encode()]
        _, _, _, address, offset, *_ = self.sections[section]
        return self.data[offset + value - address :][:size]

    def dots(self, name):
        """Signed times signed: Bochs 3 does not tell these from the unsigned, the name does."""
        return self.function(
            name, ["tilezero", "tileloadd", "tileloadd", "tdpbssd", "tilestored"]
        )

    def function(self, name, tiles):
        """Its code; its tile instructions must be these, and it must run wherever it is put."""
        command = ["objdump", "-d", "-M", "intel", "--no-show-raw-insn", f"--disassemble={name}"]
        listing = subprocess.run([*command, self.path], check=True, capture_output=True, text=True)
        lines = re.findall(r"^ +[0-9a-f]+:\t(.+)$", listing.stdout, re.MULTILINE)
        found = [line.split()[0] for line in lines if re.match(r"(tile|ldtile|sttile|td)", line)]
        if found != tiles:
            sys.exit(f"{name} has {found}, not {tiles}")
        if re.search(r"\bcall|\bj[a-z]+ |rip", "\n".join(lines)):
            sys.exit(f"{name} does not stand alone:\n{listing.stdout}")
        return self.bytes_of(name)


def all_cases(rng, count):
    """Pairs of activations and weights: extremes, the numbers of each format, anything."""
    # Tells whether the emulator's bytes have signs.
    yield bytes([255]) * (ROWS * BLOCK), bytes([1]) * (LANES * BLOCK)
    ends = [0x80, 0x81, 0x7F, 0xFF, 0x00, 0x01]
    for nth in range(1, count):
        kind = nth % 4
        pick = {
            0: lambda: rng.choice(ends),
            1: lambda: rng.randrange(128),
            2: lambda: rng.randrange(-127, 128) & 255,
            3: lambda: rng.randrange(256),
        }[kind]
        x = bytes(pick() for _ in range(ROWS * BLOCK))
        # Weights of four, five, six bits less their zero, or of eight.
        bits = rng.choice([4, 5, 6, 8])
        below = rng.choice([0, 1 << (bits - 1)]) if bits < 8 else 128
        weight = (lambda: rng.randrange(1 << bits) - below & 255) if kind == 2 else pick
        weights = bytes(weight() for _ in range(LANES * BLOCK))
        # Halves of a block are filled up with zeros.
        half = LANES * BLOCK // 2
        match rng.randrange(4):
            case 0:
                weights = weights[:half] + bytes(half)
            case 1:
                weights = bytes(half) + weights[half:]
        yield x, weights


def dots(case, signed):
    """The definition: Σ x[row][k]·w[lane][k], byte 4·lane + i of line j being k = 4j + i."""
    x, weights = case
    number = (lambda byte: byte - 256 if byte > 127 else byte) if signed else (lambda byte: byte)
    rows = [[number(b) for b in x[BLOCK * row :][:BLOCK]] for row in range(ROWS)]
    lanes = [
        [number(weights[64 * (k // 4) + 4 * lane + k % 4]) for k in range(BLOCK)]
        for lane in range(LANES)
    ]
    sums = [sum(a * b for a, b in zip(row, lane)) for row in rows for lane in lanes]
    return struct.pack(f"<{ROWS * LANES}i", *sums)


def run(emulator, image, cases):
    """What the two functions gave for each case."""
    image = bytearray(image)
    struct.pack_into("<I", image, COUNT, len(cases))
    for nth, (x, weights) in enumerate(cases):
        at = CASES + nth * CASE_BYTES
        image[at : at + CASE_BYTES] = x + weights
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rom.bin").write_bytes(image)
        (folder / "vga.bin").write_bytes(bytes(512))
        (folder / "bochsrc").write_text(CONFIG)
        said = start(emulator, folder)
        log = folder / "bochs.log"
        log = log.read_text(errors="replace") if log.exists() else said.decode(errors="replace")
    size = 2 * DOTS_BYTES * len(cases)
    # Bochs' own words come first.
    if "shutdown requested" not in log or len(said) < size:
        sys.exit(f"the emulator ended early, after {len(said)} bytes; its log:\n{log[-2000:]}")
    said = said[-size:]
    both = [said[at : at + DOTS_BYTES] for at in range(0, size, DOTS_BYTES)]
    return list(zip(both[::2], both[1::2]))


def start(emulator, folder):
    """Runs Bochs to its end, on a terminal of its own that nobody looks at."""
    libraries = emulator / "usr/lib/x86_64-linux-gnu"
    command = [
        "timeout", str(SECONDS_OF_A_RUN), libraries / "ld-linux-x86-64.so.2",
        "--library-path", libraries, emulator / "usr/bin/bochs-bin", "-q", "-f", "bochsrc",
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TERM": "linux",
        "BXSHARE": str(emulator / "usr/share/bochs"),
        "LTDL_LIBRARY_PATH": str(libraries / "bochs/plugins"),
    }
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.chdir(folder)
            out = os.open("said", os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.execvpe(command[0], command, environment)
        finally:
            os._exit(127)
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        # The other end is closed.
        pass
    os.waitpid(child, 0)
    os.close(terminal)
    return (folder / "said").read_bytes()


def judge(cases, results, seed):
    """Prints the result; the exit code."""
    signed = results[0][0] == dots(cases[0], True)
    expected = [dots(case, signed) for case in cases]
    wrong = [n for n, both in enumerate(results) if both != (expected[n], expected[n])]
    if wrong:
        print(f"case {wrong[0]} differs: {results[wrong[0]]}", file=sys.stderr)
        print(f"expected: {expected[wrong[0]]}", file=sys.stderr)
    # Where the sums of both readings agree, signs could not be missed.
    told = sum(dots(case, True) == dots(case, False) for case in cases)
    ok = not wrong and len(results) == len(cases)
    print(json.dumps({
        "ok": ok, "cases": len(results), "wrong": len(wrong), "seed": seed,
        "signs": "emulated" if signed else "by the instruction's name: Bochs reads all unsigned",
        "cases_without_negative_numbers": told,
    }))
    return 0 if ok else 1


if __name__ == "__main__":
    main()
