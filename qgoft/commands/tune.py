"""Choose the learning rates that no paper prints, and write them into configs/recipe.

    python scripts/tune.py pocket                    all methods, three learning rates each, on cola, rte and stsb at seed 0
    python scripts/tune.py pocket_math --methods lora,qgoft
    python scripts/tune.py small --methods lora,goft,qgoft -o model.path=... -o data.root=...

Every method gets the same ratios around its stated centre (configs/tuning.yaml). The best score on the validation split decides; the
reported split is not read. Finished trials are kept in results/tuning/<name>.jsonl under the key of a run with the same settings, rows and
weights, and are not repeated.
"""

import argparse
import json
import multiprocessing
import os
import re
from collections import defaultdict
from pathlib import Path

import yaml

from qgoft.cli import Parser
from qgoft.config import locations
from qgoft.config.peft_types import SHARED
from qgoft.errors import check_choice
from qgoft.machine import available_cores
from qgoft.sweep.identify import identify_all
from qgoft.sweep.planned_run import PlannedRun, compose_all

Trial = tuple[str, float, str]  # method, learning rate, task


def format_rate(rate: float) -> str:
    """Return a learning rate in a notation that every YAML reader parses as a number: 1.0e-3."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def plan(name: str, methods: list[str] | None) -> tuple[list[Trial], dict]:
    specs = yaml.safe_load((locations.CONFIGS / "tuning.yaml").read_text())
    check_choice("search", name, list(specs), "configs/tuning.yaml lists them")
    spec = specs[name]
    centres = spec["centres"]
    chosen = methods or list(centres)
    for method in chosen:
        check_choice("method", method, list(centres), f"search {name} of configs/tuning.yaml lists their centres")
    trials = [
        (method, float(format_rate(centres[method] * ratio)), task)
        for method in chosen
        for ratio in spec["ratios"]
        for task in spec["tasks"]
    ]
    return trials, spec


def cells_of(trials: list[Trial], protocol: str, overrides: list[str], jobs: int) -> dict[Trial, PlannedRun]:
    """Return each trial as a planned run with its key."""
    words = [
        (f"protocol={protocol}", f"method={method}", f"task={task}", f"optim.lr={rate}", "seed=0", *overrides)
        for method, rate, task in trials
    ]
    planned_runs = [PlannedRun(*pair) for pair in zip(words, compose_all(words, jobs), strict=True)]
    return dict(zip(trials, identify_all(planned_runs, 1)[0], strict=True))


def run_trial(job: tuple[Trial, PlannedRun]) -> dict:
    """Train once and return the best score on the validation split, or None if training diverged."""
    (method, rate, task), planned = job
    import torch

    torch.set_num_threads(1)
    from qgoft.errors import Diverged
    from qgoft.run_id import identify
    from qgoft.train.loop import LoopHooks, fit
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.run import build_selector, prepare, train_loader

    quiet_libraries()
    settings = planned.settings
    prepared = prepare(settings, identify(settings))
    try:
        fitted = fit(prepared.adapted, train_loader(prepared), settings, prepared.accelerator, LoopHooks(build_selector(prepared)))
        score = fitted.best_score
    except Diverged:
        score = None
    return {"method": method, "variant": settings.method.variant, "task": task, "lr": rate, "score": score, "key": planned.key}


def of_this_search(lines: list[dict], planned_runs: dict[Trial, PlannedRun]) -> list[dict]:
    """Return the finished trials that are part of this search, with the same settings, rows and weights."""
    keys = {trial: planned.key for trial, planned in planned_runs.items()}
    return [line for line in lines if line.get("key") is not None and line["key"] == keys.get((line["method"], line["lr"], line["task"]))]


def choose_rates(lines: list[dict], tasks: list[str]) -> dict[str, float]:
    """Return method -> learning rate with the highest mean over the tasks; one that diverged on any task is excluded."""
    scores: dict[tuple[str, float], dict[str, float | None]] = defaultdict(dict)
    for line in lines:
        scores[line["method"], line["lr"]][line["task"]] = line["score"]
    best: dict[str, tuple[float, float]] = {}
    for (method, rate), by_task in scores.items():
        values = [value for task in tasks if (value := by_task.get(task)) is not None]
        if len(values) < len(tasks):
            continue
        mean = sum(values) / len(values)
        if method not in best or mean > best[method][0]:
            best[method] = (mean, rate)
    return {method: rate for method, (_, rate) in best.items()}


def write_recipe(path: Path, suites: list[str], rate: float) -> None:
    """Write a chosen learning rate into the rows of some suites. Other rows keep theirs with its source."""
    text = path.read_text()
    before = re.search(r"^source: (.*)$", text, flags=re.M)
    assert before, f"{path} has no source"
    lines, suite = text.splitlines(keepends=True), ""
    for i, line in enumerate(lines):
        if line[0].isalpha():
            suite = line.partition(":")[0]
        elif suite in suites:
            line = re.sub(r"\blr: [0-9.e+-]+", f"lr: {format_rate(rate)}", line)
            lines[i] = re.sub(r', source: (".*?"|[^,}]*)', "", line)
        elif before[1] != "own" and "{" in line and "source:" not in line:
            lines[i] = line.replace("}", f", source: {before[1]}}}")
    text = "".join(lines)
    text = re.sub(r"^source: .*$", "source: own", text, flags=re.M)
    path.write_text(text)


def write_shared_rate(path: Path, method: str, rate: float) -> None:
    """Write the learning rate of a method without a recipe of its own into `rates` of the shared one."""
    before, start, after = path.read_text().partition("rates:")
    assert start, f"{path} has no rates"
    body = re.match(r"(?: \{\})?\n((?:  .*\n)*)", after)
    assert body, f"{path}: rates has another form"
    lines = {line.split(":")[0].strip(): line for line in body[1].splitlines()}
    lines[method] = f"  {method}: {{lr: {format_rate(rate)}, source: own}}"
    path.write_text(f"{before}rates:\n" + "".join(f"{lines[name]}\n" for name in sorted(lines)) + after[body.end() :])


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--jobs", type=int, default=available_cores())
    parser.add_argument("--results", type=Path, default=Path("results/tuning"))
    parser.add_argument("-o", "--override", action="append", default=[])
    arguments = parser.parse_args(argv)
    trials, spec = plan(arguments.name, arguments.methods)
    path = arguments.results / f"{arguments.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    overrides = [*spec.get("overrides", []), *arguments.override]
    planned_runs = cells_of(trials, spec["protocol"], overrides, arguments.jobs)
    lines = of_this_search(lines, planned_runs)
    done = {(line["method"], line["lr"], line["task"]) for line in lines}
    jobs = [(trial, planned) for trial, planned in planned_runs.items() if trial not in done]
    print(f"{len(trials)} trials, {len(trials) - len(jobs)} done", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool, path.open("a") as file:
        for line in pool.imap_unordered(run_trial, jobs):
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
            print(f"{line['method']:<10} {line['task']:<16} lr {line['lr']:<8} {line['score']}", flush=True)
    for method, rate in choose_rates(lines, spec["tasks"]).items():
        recipes = locations.CONFIGS / "recipe" / spec["protocol"]
        if (recipes / f"{method}.yaml").exists():
            write_recipe(recipes / f"{method}.yaml", spec["writes"], rate)
        else:
            write_shared_rate(recipes / f"{SHARED}.yaml", method, rate)
        print(f"{method}: lr {format_rate(rate)}")
    return 0
