#!/usr/bin/env python3
"""Losses of the first steps of every embedded training, compared with tests/train/loss_curves.json to detect silent changes of numbers.

    python -m tests.train.loss_curves            compare
    python -m tests.train.loss_curves --write    replace the committed curves; CHANGELOG.md must name the printed checksum

A curve depends on a task's generated rows, their order, the tokens, the initial head, the embedded weights, the operator, the optimiser and
the schedule.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from qgoft.cli import Parser, run_cli
from qgoft.config.compose import compose_settings
from qgoft.config.suites import config_names, suite_info

FILE = Path(__file__).resolve().parent / "loss_curves.json"
STEPS = 6
# Relative. With other instructions of the same processor (AVX2 for AVX-512) and two threads the losses of six steps differ by 5e-7; a learning
# rate that is larger by a thousandth moves them by nine times the tolerance.
TOLERANCE = 1e-5
# Further methods on one task: rotations only, and baselines.
MORE = [("glue/rte", "goft"), ("glue/rte", "lora"), ("glue/rte", "psoft"), ("glue/rte", "full")]


def curves() -> list[tuple[str, str]]:
    """Return (task, method) of every curve."""
    tasks = [task.split("/") for task in config_names("task")]
    # The tasks of a decoder suite share a training.
    trained = (f"{suite}/{name}" for suite, name in tasks if not suite_info(suite).is_decoder or name == suite_info(suite).probe_task)
    return [*((task, "qgoft") for task in trained), *MORE]


def measure(task: str, method: str, *words: str) -> list[float]:
    """Return the losses of the first steps, in nats, under the protocol's settings or with overrides."""
    from qgoft.run_id import identify
    from qgoft.train.loop import LoopHooks, fit
    from qgoft.train.run import prepare, train_loader

    own = [f"task={task}", f"method={method}", "protocol=pocket", "seed=0", f"train.max_steps={STEPS}", "optim.warmup=2"]
    settings = compose_settings([*own, *words])
    prepared = prepare(settings, identify(settings))
    losses: list[float] = []
    hooks = LoopHooks(log=lambda line: losses.append(line["loss"]))
    fit(prepared.adapted, train_loader(prepared), settings, prepared.accelerator, hooks)
    return losses


def checksum() -> str:
    """Return the checksum of the file, which CHANGELOG.md names."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    found, worst = {}, 0.0
    for task, method in curves():
        name = f"{task} {method}"
        found[name] = measure(task, method)
        apart = max((abs(new - old) / abs(old) for new, old in zip(found[name], kept.get(name, []), strict=False)), default=float("nan"))
        worst = max(worst, apart)
        print(f"{name:36}{' '.join(f'{loss:.4f}' for loss in found[name])}   differs by {apart:.1e}", flush=True)
    if arguments.write:
        lines = ",\n".join(f'  "{name}": [{", ".join(f"{loss:.7g}" for loss in losses)}]' for name, losses in found.items())
        FILE.write_text(f"{{\n{lines}\n}}\n")
        print(f"kept; CHANGELOG.md must have a line with: loss curves {checksum()}")
        return 0
    if not worst <= TOLERANCE:
        print(f"qgoft: a loss differs by {worst:.1e} of itself, more than {TOLERANCE:g}", file=sys.stderr)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    run_cli(main)
