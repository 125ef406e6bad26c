"""Times tpvit and other runtimes on the same networks, in turn; run.sh calls it.

Every system is a process that stays alive, made ready beforehand. A round asks
one after the other for a few warm-up runs and a few timed ones; the next round
starts with another system. So all see the same minutes of the same machine, and
the ratio of two systems in one round says more than either time.

    ratio of a round = median of ours (W8A8) / median of the other     < 1: ours is faster

Batch 1. Peers get floats that are already normalised, tpvit gets u8 pixels (its
weights hold mean and deviation); reading pictures is in nobody's time.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import models
import prepare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MASKS = {
    "none": "as it is",
    "avx512": "AVX-512 hidden, AVX-VNNI left",
    "vnni": "AVX-512 and AVX-VNNI hidden: an AVX2 machine",
}


class System(NamedTuple):
    """What a row of the tables runs."""

    title: str
    runtime: str
    file: str  # {} is the model's name

    @property
    def package(self):
        return self.runtime.removesuffix("-f32")


SYSTEMS = {
    "tpvit-w8a8": System("**tpvit W8A8**", "tpvit", "{}.w8a8.tpv"),
    "tpvit-w4a4": System("**tpvit W4A4**", "tpvit", "{}.w4a4.tpv"),
    "ort-f32": System("ONNX Runtime f32", "ort", "{}.onnx"),
    "ort-dynamic": System("ONNX Runtime int8, dynamic", "ort", "{}.dynamic.onnx"),
    "ort-static": System("ONNX Runtime int8, static QDQ", "ort", "{}.static.onnx"),
    "openvino-f32": System("OpenVINO f32", "openvino-f32", "{}.onnx"),
    "openvino-bf16": System("OpenVINO, bf16 allowed (default)", "openvino", "{}.onnx"),
    "openvino-int8": System("OpenVINO int8 (NNCF)", "openvino-f32", "{}.nncf.xml"),
    "openvino-int8-bf16": System("OpenVINO int8 (NNCF), bf16 allowed (default)", "openvino", "{}.nncf.xml"),
    "litert-f32": System("LiteRT f32", "litert", "{}.float.tflite"),
    "litert-dynamic": System("LiteRT int8, dynamic", "litert", "{}.dynamic.tflite"),
    "rten-f32": System("rten f32", "rten", "{}.onnx"),
    "rten-dynamic": System("rten int8, dynamic", "rten", "{}.dynamic.onnx"),
    "tract-f32": System("tract f32", "tract", "{}.onnx"),
}
OURS = "tpvit-w8a8"
# How long the machine is kept from others at a time, where `--guard` is given.
TURN_SECONDS = 15
PAUSE_SECONDS = 0.2


class Bench:
    """Folders and programs of one run of this script."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.build = arguments.build.resolve()
        self.files = self.build / "models"
        self.logs = self.build / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.programs = {"tpvit": arguments.tpvit.resolve(), "peer": self.build / "rust/release/peer"}

    def prepare(self, names):
        """The models of every system: made once, kept in the build folder."""
        photos = ROOT / "models/zoo/photos"
        prepare.prepare(self.files, photos, names, self.arguments.onnx2tf)
        for name in names:
            for bits in ("8", "4"):
                target = self.files / f"{name}.w{bits}a{bits}.tpv"
                if not target.exists():
                    print(f"making {target.name}", flush=True)
                    command = [self.programs["tpvit"], "quantize", self.files / f"{name}.onnx"]
                    command += ["--calibration", photos, "--preprocess", "imagenet"]
                    # Speed does not depend on the values: no training; uniform codes, which
                    # have kernels of their own at 4 bits.
                    command += ["--effort", "fast", "--normed-code", "uniform"]
                    command += ["--hidden-code", "uniform"]
                    command += ["-w", bits, "-a", bits, "-o", target]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def masked(self, source, folder):
        """A copy of `source` that asks mask.so what the CPU can do."""
        copy = folder / source.name
        if not copy.exists() or copy.stat().st_mtime < source.stat().st_mtime:
            print(f"masking {source.name}", flush=True)
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run([sys.executable, HERE / "mask/mask.py", source, partial], check=True)
            shutil.rmtree(copy) if copy.is_dir() else copy.unlink(missing_ok=True)
            (partial / source.name).rename(copy)
        return copy

    def environment(self, mask):
        """Programs and environment variables that make `mask` true."""
        environment = dict(os.environ)
        if mask == "none":
            return self.programs, environment
        folder = self.build / "mask"
        (folder / "site").mkdir(parents=True, exist_ok=True)
        library = folder / "mask.so"
        command = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "mask/mask.c"]
        subprocess.run(command, check=True)
        programs = {name: self.masked(path, folder) for name, path in self.programs.items() if path.exists()}
        for package in ("onnxruntime", "openvino", "ai_edge_litert"):
            installed = Path(np.__file__).parent.parent / package
            if installed.exists():
                self.masked(installed, folder / "site")
        environment["CPU_MASK"] = mask
        environment["LD_PRELOAD"] = str(library)
        environment["PYTHONPATH"] = str(folder / "site")
        # The C library chose its memcpy before mask.so was there; its own switch.
        hidden = ("AVX512F", "AVX512VL", "AVX512BW", "AVX512CD", "AVX512DQ")
        environment["GLIBC_TUNABLES"] = "glibc.cpu.hwcaps=" + ",".join(f"-{name}" for name in hidden)
        return programs, environment

    @contextlib.contextmanager
    def guard(self):
        """Holds `--guard COMMAND` while the body runs, where others share the machine."""
        if not self.arguments.guard:
            yield
            return
        command = [*self.arguments.guard.split(), "sh", "-c", "echo held; cat >/dev/null"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
            held.stdout.readline()
            try:
                yield
            finally:
                held.stdin.close()


class Worker:
    """A peer's process: worker.py, or the Rust peer, which speak the same protocol."""

    def __init__(self, command, environment, log):
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.log = log
        about = self.read()
        self.version, self.logits = about["version"], np.array(about["logits"])

    def read(self):
        """The next line of JSON; runtimes print other things too."""
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                return json.loads(line)
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit status {self.process.wait()}")

    def round(self, warmup, runs):
        self.process.stdin.write(f"run {warmup} {runs}\n")
        self.process.stdin.flush()
        times = self.read()
        return {"median_ms": statistics.median(times), "min_ms": min(times)}

    def stop(self):
        """Ends the process; gives what it wrote to standard error."""
        self.process.stdin.close()
        self.process.wait()
        return self.log.read_text()


class Ours:
    """`tpvit bench`, a process each round: loading is outside its times."""

    def __init__(self, program, model, threads, environment):
        self.command = [program, "bench", model, "--threads", str(threads), "--json"]
        self.environment = environment
        self.errors = ""
        version = subprocess.run([program, "--version"], env=environment, check=True, capture_output=True, text=True)
        self.version = version.stdout.split()[1]
        self.logits = None

    def round(self, warmup, runs):
        command = [*self.command, "--warmup", str(warmup), "--runs", str(runs)]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        self.errors = done.stderr
        report = json.loads(done.stdout)
        keys = ("median_ms", "min_ms", "isa", "peak_gmacs", "peak_instructions", "fraction_of_peak", "profile")
        return {key: report[key] for key in keys if key in report}

    def stop(self):
        """As `Worker.stop`."""
        return self.errors


def start(bench, key, name, threads, mask, programs, environment):
    """The process of system `key`, ready for rounds."""
    system = SYSTEMS[key]
    model = bench.files / system.file.format(name)
    if system.runtime == "litert" and not model.exists():
        raise RuntimeError("no .tflite: onnx2tf needs Python 3.12 or later")
    if system.runtime == "tpvit":
        return Ours(programs["tpvit"], model, threads, environment)
    picture = bench.files / f"input{models.MODELS[name].side}.f32"
    if system.runtime in ("rten", "tract"):
        command = [programs["peer"], system.runtime, model, picture, str(threads)]
    else:
        command = [sys.executable, HERE / "worker.py", system.runtime, model, picture, str(threads)]
    return Worker(command, environment, bench.logs / f"{name}.{key}.{threads}.{mask}.log")


def agreement(workers):
    """Cosine of each system's logits with those of ONNX Runtime in f32.

    A graph that computes something else has no speed: a float system must give
    the same logits, an int8 system similar ones.
    """
    reference = workers.get("ort-f32")
    if reference is None:
        return {}
    cosines = {}
    for key, worker in workers.items():
        if worker.logits is not None:
            a, b = worker.logits, reference.logits
            cosines[key] = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            least = 0.99999 if key.endswith("f32") else 0.9
            if cosines[key] < least:
                print(f"  {key}: cosine with f32 is {cosines[key]:.4f}, less than {least}", flush=True)
    return cosines


def start_all(bench, name, threads, mask):
    """The processes that are ready, and why the others are not."""
    workers, failed = {}, {}
    programs, environment = bench.environment(mask)
    # rten sizes its global pool by this; its runs use a pool of their own.
    environment["RTEN_NUM_THREADS"] = str(threads)
    for key in bench.arguments.systems:
        try:
            workers[key] = start(bench, key, name, threads, mask, programs, environment)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            failed[key] = str(error)
            print(f"  {key}: {error}", flush=True)
    return workers, failed


def add_rounds(arguments, workers, rounds):
    """Adds rounds to `rounds` until there are enough, or the turn is over."""
    keys = list(workers)
    turn = time.monotonic()
    while len(rounds) < arguments.rounds and time.monotonic() - turn < TURN_SECONDS:
        first = len(rounds) % len(keys)
        order = keys[first:] + keys[:first]
        done = {}
        for key in order:
            # The threads of the one before may still be spinning.
            time.sleep(PAUSE_SECONDS)
            done[key] = workers[key].round(arguments.warmup, arguments.runs)
        rounds.append(done)
        medians = ", ".join(f"{key} {done[key]['median_ms']:.2f}" for key in keys)
        print(f"  round {len(rounds)}: {medians}", flush=True)


def measure(bench, name, threads, mask):
    """One column of the tables: a record for the results file."""
    arguments = bench.arguments
    print(f"{name}, {threads} thread(s), {MASKS[mask]}", flush=True)
    rounds = []
    with bench.guard():
        workers, failed = start_all(bench, name, threads, mask)
        add_rounds(arguments, workers, rounds)
    while len(rounds) < arguments.rounds:
        with bench.guard():
            add_rounds(arguments, workers, rounds)
    cosines = agreement(workers)
    versions = {key: worker.version for key, worker in workers.items()}
    masked = {}
    for key, worker in workers.items():
        answered = re.search(r"mask.so: (\d+) CPUID answered", worker.stop())
        masked[key] = int(answered[1]) if answered else 0
        if (masked[key] == 0) != (mask == "none"):
            raise SystemExit(f"{key}: {masked[key]} answers of mask.so under mask {mask}; this measurement is void")
    return {
        "model": name,
        "threads": threads,
        "mask": mask,
        "versions": versions,
        "cosine_with_f32": cosines,
        "cpuid_answered": masked,
        "failed": failed,
        "rounds": rounds,
    }


def cells(record, key):
    """`median (min)` in milliseconds and the ratio of rounds, or why there is none."""
    times = [done[key]["median_ms"] for done in record["rounds"] if key in done]
    if not times:
        return ["-", "-"] if key not in record["failed"] else ["failed", "-"]
    ratios = [
        done[OURS]["median_ms"] / done[key]["median_ms"]
        for done in record["rounds"]
        if key in done and OURS in done
    ]
    ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
    return [f"{statistics.median(times):.2f} ({min(times):.2f})", ratio]


def operation(report, kind):
    """Share of the time on one thread, and of the peak of one core."""
    total = sum(entry["ms"] for entry in report["profile"])
    for entry in report["profile"]:
        if entry["kind"] == kind:
            time_share = f"{100 * entry['ms'] / total:.0f} %"
            return time_share + (f" at {100 * entry['fraction_of_peak']:.0f} %" if entry["macs"] else "")
    return ""


def share_of_peak(records):
    """How well ours uses the machine, from its own reports: a table."""
    kinds = ("linear", "attention", "layer-norm", "patch-embed")
    lines = ["### Share of the measured peak", ""]
    lines.append("| model | codes | ISA | peak of a core, GMAC/s | threads | run | " + " | ".join(kinds) + " |")
    lines.append("|---|---|---|---|---:|---:|" + "---:|" * len(kinds))
    for record in records:
        for key in ("tpvit-w8a8", "tpvit-w4a4"):
            reports = [done[key] for done in record["rounds"] if "peak_gmacs" in done.get(key, {})]
            if not reports:
                continue
            report = sorted(reports, key=lambda report: report["fraction_of_peak"])[len(reports) // 2]
            peak = f"{report['peak_gmacs']:.0f} ({report['peak_instructions']})"
            row = [record["model"], key.removeprefix("tpvit-").upper(), report["isa"], peak, str(record["threads"])]
            row.append(f"{100 * report['fraction_of_peak']:.0f} %")
            row += [operation(report, kind) if record["threads"] == 1 else "" for kind in kinds]
            lines.append("| " + " | ".join(row) + " |")
    return lines


def tables(records):
    """Markdown: one table for each mask and number of threads, and one of our shares of the peak."""
    order = list(models.MODELS)
    records = sorted(records, key=lambda r: (list(MASKS).index(r["mask"]), r["threads"], order.index(r["model"])))
    lines = []
    for mask, title in MASKS.items():
        for threads in sorted({r["threads"] for r in records}):
            here = [r for r in records if r["mask"] == mask and r["threads"] == threads]
            if not here:
                continue
            lines += [f"### {threads} thread{'s' * (threads > 1)}, {title}", ""]
            lines.append("| system | " + " | ".join(f"{r['model']}, ms | ratio" for r in here) + " |")
            lines.append("|---|" + "---:|---:|" * len(here))
            for key, system in SYSTEMS.items():
                row = [cell for record in here for cell in cells(record, key)]
                if any(cell != "-" for cell in row):
                    lines.append(f"| {system.title} | " + " | ".join(row) + " |")
            lines.append("")
    return "\n".join(lines + share_of_peak(records))


def machine():
    """What the operating system calls this CPU."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} CPUs, {platform.system()}"


def numbers(text):
    return [int(part) for part in text.split(",")]


def names(known):
    def parse(text):
        parts = text.split(",")
        for part in parts:
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part}: known are {', '.join(known)}")
        return parts

    return parse


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=names(models.MODELS), default=list(models.MODELS))
    parser.add_argument("--threads", type=numbers, default=[1], help="such as 1,2")
    parser.add_argument("--mask", type=names(MASKS), default=["none"], help="such as none,vnni")
    parser.add_argument("--systems", type=names(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=10, help="timed inferences of a round")
    parser.add_argument("--warmup", type=int, default=2, help="untimed inferences of a round")
    parser.add_argument("--report", action="store_true", help="only print what was measured before")
    parser.add_argument("--guard", metavar="COMMAND", help="a prefix held while timing, such as 'flock LOCKFILE'")
    parser.add_argument("--build", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--tpvit", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--onnx2tf", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    bench = Bench(arguments)
    results = bench.build / "results.json"
    records = json.loads(results.read_text())["records"] if results.exists() else []
    if not arguments.report:
        bench.prepare(arguments.models)
        for name in arguments.models:
            for threads in arguments.threads:
                for mask in arguments.mask:
                    record = measure(bench, name, threads, mask)
                    place = (name, threads, mask)
                    records = [r for r in records if (r["model"], r["threads"], r["mask"]) != place] + [record]
                    text = json.dumps({"machine": machine(), "records": records}, indent=1)
                    results.write_text(text)
    versions = {}
    for record in records:
        versions |= {SYSTEMS[key].package: version for key, version in record["versions"].items()}
    print(f"\n{machine()}")
    print(", ".join(f"{runtime} {version}" for runtime, version in sorted(versions.items())))
    print("median of the rounds' medians (smallest median); ratio: tpvit W8A8 / the row, median of the rounds\n")
    print(tables(records))
    print(f"all numbers: {results}", file=sys.stderr)


if __name__ == "__main__":
    main()
