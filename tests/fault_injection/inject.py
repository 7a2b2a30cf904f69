#!/usr/bin/env python3
"""Inject random, seeded faults into runs and sweeps, and compare the results with undisturbed ones.

    python -m tests.fault_injection.inject faults --number 1000 --seed 0    short runs, each with faults in its own process, then resumed
    python -m tests.fault_injection.inject kills --number 50 --seed 0       a pocket GLUE sweep, killed at random moments and restarted
    python -m tests.fault_injection.inject cost --number 3                  cost of checkpoints, and time to resume a pocket run

After every fault the run must have reported it, no other record may have changed, and the resumed run must equal the undisturbed one to the
bit.
"""

import argparse
import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from qgoft.cli import Parser, run_cli
from qgoft.config.settings import RunSettings
from qgoft.lease import this_machine
from qgoft.records import canonical_json, find_records
from qgoft.run_id import identify
from tests.fault_injection.faults import FAULTS, INJECTED, Fault, full_disk, may_mount
from tests.fault_injection.kills import kill_sweeps, measure_costs
from tests.fault_injection.runs import PARTS, Result, clear, execute, in_child, outcome, short_runs


def damage(rng: random.Random, path: Path) -> None:
    """Flip a bit, truncate the file, or empty it."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "empty"])
    if kind == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: rng.randrange(len(content))] if kind == "cut" and content else b"")


class FaultInjector:
    """Injects faults into runs, and checks each time that nothing is lost or wrong."""

    def __init__(self, directory: Path, seed: int):
        self.rng = random.Random(seed)
        self.directory, self.data = directory, directory / "data"
        clear(directory)
        self.log = directory / "log.txt"
        self.runs = short_runs(directory / "results", self.data)
        self.expected: dict[str, Any] = {}
        self.count: Counter[str] = Counter()
        self.failures: list[str] = []
        self.faults = [fault for fault in FAULTS if fault.inject is not full_disk or may_mount(directory / "mounted")]
        if len(self.faults) < len(FAULTS):
            print("not injected: full disk (this process may not mount a file system); disk error and file size are injected")

    def _finish(self, settings: RunSettings) -> Result:
        result = in_child(lambda: execute(settings), self.log)
        if result.code:
            raise RuntimeError(
                f"an undisturbed run of {settings.method.name} on {settings.task.name} ended with {result.code}: {result.output}"
            )
        return result

    def _records(self) -> dict[str, str]:
        found = find_records(self.directory / "results")
        return {record["key"]: canonical_json(record) for record in found.records}

    def step(self) -> None:
        """Execute one run with up to three faults, one of which may damage its files; then resume it and compare."""
        settings = self.rng.choice(self.runs)
        run_id = identify(settings)
        if run_id.key not in self.expected:
            self._finish(settings)
            self.expected[run_id.key] = outcome(run_id.directory)
        self.injected: list[str] = []
        others = {key: text for key, text in self._records().items() if key != run_id.key}
        what = f"{settings.method.name} on {settings.task.name}"
        if self.rng.random() < 0.15:
            self._damage_a_record(settings, what)
        else:
            shutil.rmtree(run_id.directory)
        for _ in range(self.rng.randint(1, 3)):
            fault = self.rng.choice(self.faults)
            if run_id.is_done:  # the faults before let it finish
                shutil.rmtree(run_id.directory)
            result = in_child(lambda fault=fault: self._faulty_run(settings, fault), self.log)  # type: ignore[misc]
            self._check_report(fault, result, settings, what)
            if self.rng.random() < 0.3:
                self._damage_what_is_left(settings, what)
        output = self._finish(settings).output
        found, expected = outcome(run_id.directory), self.expected[run_id.key]
        differing = [name for name, one, two in zip(PARTS, found, expected, strict=True) if one != two]
        self._check(not differing, f"{what} after {', '.join(self.injected)}: {', '.join(differing)} differ; last output: {output[-300:]}")
        self._check(not list(run_id.directory.glob("checkpoint/*")), f"{what}: a checkpoint is left of a run that is done")
        self._check(
            {key: text for key, text in self._records().items() if key != run_id.key} == others, f"{what}: other records have changed"
        )

    def _faulty_run(self, settings: RunSettings, fault: Fault) -> None:
        with fault.inject(self.rng, identify(settings).directory):
            execute(settings)

    def _check_report(self, fault: Fault, result: Result, settings: RunSettings, what: str) -> None:
        """Check that a fault that occurred was reported, and that a run without one is done."""
        path = identify(settings).directory / "record.json"
        self._check("Traceback" not in result.output, f"{what}, {fault.name}: traceback: {result.output[-900:]}")
        # A run that fits on a small file system may finish there, and disappears with it.
        has_occurred = INJECTED in result.output or result.code != 0 or fault.inject is full_disk
        if has_occurred:  # it may have been planned for a write that did not happen
            self._note(fault.name)
        if fault.says is None or not has_occurred:
            self._check(result.is_killed or identify(settings).is_done, f"{what}, {fault.name}: ended silently: {result.output[-600:]}")
        else:
            self._check(re.search(fault.says, result.output) is not None, f"{what}, {fault.name}: not reported: {result.output[-600:]}")
        if fault.name == "clock" and INJECTED in result.output:
            named = any("the clock was set back" in problem for problem in find_records(path.parent).problems)
            self._check(named, f"{what}: a clock that was set back is not reported")

    def _damage_a_record(self, settings: RunSettings, what: str) -> None:
        """Flip a bit, also one that gives another valid number."""
        self._note("damaged record")
        path = identify(settings).directory / "record.json"
        before = path.read_text()
        damage(self.rng, path)
        problems = find_records(self.directory / "results").problems
        self._check(any(str(path) in problem for problem in problems), f"{what}: a damaged record is not reported: {before}")
        self._check(identify(settings).state()[0] == "corrupt", f"{what}: a damaged record counts")

    def _damage_what_is_left(self, settings: RunSettings, what: str) -> None:
        run_id = identify(settings)
        directory = run_id.directory
        kind = self.rng.choice(["checkpoint", "lease", "rows", "history"])
        checkpoints = run_id.checkpoints()
        if kind == "checkpoint" and checkpoints:
            damage(self.rng, checkpoints[-1])
            self._note("damaged checkpoint")
            result = in_child(lambda: self._faulty_run(settings, FAULTS[0]), self.log)
            self._check("is corrupt and not used" in result.output, f"{what}: a damaged checkpoint is not reported: {result.output[-600:]}")
        elif kind == "lease" and directory.is_dir():
            (directory / "lease.7.json").write_text(json.dumps({**this_machine(), "pid": 2**22 - 1}))
            self._note("lease of a dead process")
            self._check(run_id.state()[0] != "running", f"{what}: a lease without an owner blocks the run")
        elif kind == "rows":
            self._note("damaged image" if settings.task.suite == "vtab" else "damaged rows")
            of_task = self.data / settings.task.name
            path = self.rng.choice(sorted(of_task.glob("images/*"))) if settings.task.suite == "vtab" else of_task / "train.parquet"
            content = path.read_bytes()
            path.write_bytes(content[: self.rng.randrange(len(content) // 2)])
            result = in_child(lambda: execute(settings), self.log)
            path.write_bytes(content)
            is_reported = result.code == 2 and re.search(r"train\.parquet|cannot be read|images cannot be decoded", result.output)
            self._check(bool(is_reported), f"{what}: damaged rows are not reported: {result.output[-600:]}")
        elif kind == "history" and (directory / "history.jsonl").is_file():
            self._note("damaged history")
            before = (directory / "history.jsonl").read_bytes()
            damage(self.rng, directory / "history.jsonl")
            if run_id.is_done and (directory / "history.jsonl").read_bytes() != before:
                problems = find_records(directory).problems
                self._check(
                    any("history.jsonl: it differs from its checksum" in p for p in problems), f"{what}: a changed curve is not reported"
                )
                shutil.rmtree(directory)

    def _note(self, name: str) -> None:
        self.count[name] += 1
        self.injected.append(name)

    def _check(self, condition: bool, message: str) -> None:
        if not condition:
            self.failures.append(message)
            print(f"FAILED: {message}", flush=True)


def inject_faults(arguments: argparse.Namespace) -> int:
    """Inject faults until the number is reached."""
    import torch

    from qgoft.train import run  # noqa: F401 - once, here: every child has it then
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    began = time.monotonic()
    work = FaultInjector(arguments.directory, arguments.seed)
    while work.count.total() < arguments.number:
        work.step()
        if arguments.verbose:
            print(f"{work.count.total()} faults, {len(work.failures)} checks failed", flush=True)
    print(f"seed {arguments.seed}: {work.count.total()} faults in {time.monotonic() - began:.0f} s over {len(work.expected)} runs")
    for name, number in sorted(work.count.items()):
        print(f"  {name:<24} {number:>5}")
    print(
        f"{len(work.failures)} checks failed" if work.failures else "every result equals the undisturbed one, and every fault was reported"
    )
    return 1 if work.failures else 0


def parse(overrides: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["faults", "kills", "cost"])
    parser.add_argument("overrides", nargs="*", help="overrides of the sweep or run, such as train.max_steps=60")
    parser.add_argument("--number", type=int, required=True, help="number of faults or kills, or of timed runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="qgoft", help="method of the killed sweep or the timed run")
    parser.add_argument("--directory", type=Path, default=Path("results") / "fault-injection", help="this directory is emptied")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_intermixed_args(overrides)


def main(overrides: list[str]) -> int:
    arguments = parse(overrides)
    return {"faults": inject_faults, "kills": kill_sweeps, "cost": measure_costs}[arguments.kind](arguments)


if __name__ == "__main__":
    run_cli(lambda: main(sys.argv[1:]), interrupted="interrupted")
