#!/usr/bin/env python3
"""Time of a training step against LoRA r=8, on a DeBERTaV3-base-shaped model: what `make bench` prints.

The operator's tests run first; a wrong operator is not timed. The result is written to results/bench.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from qgoft import records
from qgoft.bench.step import REFERENCE, Shape, measure, ratios
from qgoft.report.layout import Table
from qgoft.train.quiet import quiet_libraries

REPOSITORY = Path(__file__).resolve().parents[1]


def operator_is_right() -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/ops"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print("operator's tests:", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "bench.json")
    arguments = parser.parse_args()
    if not operator_is_right():
        print("qgoft: the operator fails its tests; nothing is timed", file=sys.stderr)
        return 1
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    shape = Shape(arguments.layers, arguments.batch, arguments.length)
    timings = measure(shape, arguments.repeats, lambda line: print(line, end="\r", flush=True))
    reference = next(timing for timing in timings if timing.name == REFERENCE)
    title = f"training step, DeBERTaV3-base shape, {shape.layers} layers, batch {shape.batch} x {shape.length}, float32, {torch.get_num_threads()} threads"
    table = Table("bench", title, ["", "trainable", "s/step", f"x {REFERENCE}", "middle half", "MB kept for backward"])
    lines = []
    for timing in timings:
        median, low, high = ratios(timing, reference)
        seconds = sorted(timing.seconds)[len(timing.seconds) // 2]
        table.rows.append(
            [
                timing.name,
                f"{timing.trainable:,}",
                f"{seconds:.3f}",
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{timing.saved_bytes / 1e6:.0f}",
            ]
        )
        lines.append(
            {"name": timing.name, "seconds": timing.seconds, "ratio": median, "low": low, "high": high, "saved_bytes": timing.saved_bytes}
        )
    print(table.terminal())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "title": title,
        "repeats": arguments.repeats,
        "timings": lines,
        **records.code_provenance(REPOSITORY),
        "packages": records.package_versions(),
        "hardware": records.hardware(device="cpu", threads=torch.get_num_threads(), processes=1),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
