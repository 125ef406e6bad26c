"""Copies programs and libraries so that mask.so can answer their CPUID.

    mask.py SOURCE... TARGET_FOLDER

Each SOURCE, a file or a folder, is copied into TARGET_FOLDER. In the copies of
ELF files each CPUID (0F A2) becomes UD1 (0F B9); see mask.c. Only instructions
that objdump disassembles as `cpuid` are touched, never two bytes that happen to
look like one. The originals stay as they are.
"""

import argparse
import re
import shutil
import subprocess
from pathlib import Path

CPUID, UD1 = b"\x0f\xa2", b"\x0f\xb9"


def sections(path):
    """Address, size and offset in the file of each section with code."""
    listing = subprocess.run(["objdump", "-h", "-w", path], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        if "CODE" in line:
            _, _, size, address, _, offset, *_ = line.split()
            yield int(address, 16), int(size, 16), int(offset, 16)


def cpuid_offsets(path):
    """Where in the file its CPUID instructions are."""
    ranges = list(sections(path))
    with subprocess.Popen(["objdump", "-d", "-w", path], stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            found = re.match(r"\s*([0-9a-f]+):\t0f a2\s+\tcpuid", line)
            if found:
                at = int(found[1], 16)
                yield next(at - a + offset for a, size, offset in ranges if a <= at < a + size)
    if listing.returncode:
        raise SystemExit(f"objdump failed on {path}")


def patch(path):
    """Replaces each CPUID of an ELF file; returns their number."""
    code = bytearray(path.read_bytes())
    if not code.startswith(b"\x7fELF") or CPUID not in code:
        return 0
    count = 0
    for offset in cpuid_offsets(path):
        assert code[offset : offset + 2] == CPUID, f"{path}: no CPUID at {offset:#x}"
        code[offset : offset + 2] = UD1
        count += 1
    path.write_bytes(code)
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="+", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    for source in arguments.source:
        copy = arguments.target / source.name
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
        files = [copy] if copy.is_file() else [f for f in sorted(copy.rglob("*")) if f.is_file() and not f.is_symlink()]
        for file in files:
            if count := patch(file):
                print(f"{file.relative_to(arguments.target)}: {count} cpuid")


if __name__ == "__main__":
    main()
