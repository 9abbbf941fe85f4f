#!/usr/bin/env python3
"""A gate for speed that no load on the machine can move: instructions, counted by callgrind.

    python3 tests/gate/instructions.py            compare with instructions.json beside this file
    python3 tests/gate/instructions.py --update   write down what is counted now

Each operation of scheduler/examples/instructions.rs is run by itself; only the functions of its
module `measured` are counted. A count that has grown by more than the tolerance fails. One that has
shrunk by more fails as well, with the advice to write it down: else the next loss would hide in it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = pathlib.Path(__file__).with_suffix(".json")
# Another patch release of the compiler moves counts by a percent or two.
TOLERANCE_PERCENT = 8
# The C library picks its memcpy by the processor: the same everywhere, so that counts are.
PLAIN_LIBC = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM"
# Operation, and the function of `measured` that does it.
OPERATIONS = {"search": "search", "update": "update", "start": "receive", "ready": "receive"}


def build():
    command = ["cargo", "build", "--release", "--locked", "-p", "pronto-scheduler"]
    subprocess.run([*command, "--example", "instructions"], cwd=ROOT, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    found = subprocess.run(metadata, cwd=ROOT, check=True, capture_output=True, text=True)
    target = pathlib.Path(json.loads(found.stdout)["target_directory"])
    return target / "release" / "examples" / "instructions"


def count(program, operation, function):
    """Instructions of one operation."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={directory}/out",
            f"--toggle-collect=*measured*{function}*",
            str(program),
            operation,
        ]
        environment = {**os.environ, "GLIBC_TUNABLES": PLAIN_LIBC}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode != 0:
        sys.exit(f"{operation} failed:\n{ran.stdout}{ran.stderr}")
    collected = re.search(r"Collected : (\d+)", ran.stderr)
    operations = re.search(r"operations (\d+)", ran.stdout)
    if not collected or not operations or int(collected[1]) == 0:
        sys.exit(f"{operation}: callgrind counted nothing:\n{ran.stdout}{ran.stderr}")
    return round(int(collected[1]) / int(operations[1]))


def main():
    program = build()
    counts = {name: count(program, name, function) for name, function in OPERATIONS.items()}
    if sys.argv[1:] == ["--update"]:
        FIGURES.write_text(json.dumps(counts, indent=2) + "\n")
    known = json.loads(FIGURES.read_text())
    failed = False
    for name, now in counts.items():
        before = known.get(name)
        if before is None:
            sys.exit(f"{name} has no figure in {FIGURES.name}: run with --update")
        percent = 100 * (now - before) / before
        verdict = "ok"
        if percent > TOLERANCE_PERCENT:
            verdict = "MORE than it was"
        elif percent < -TOLERANCE_PERCENT:
            verdict = "less than it was: write it down with --update"
        failed |= verdict != "ok"
        print(f"{name:8}{now:8} instructions, {percent:+.1f} % ({before})  {verdict}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
