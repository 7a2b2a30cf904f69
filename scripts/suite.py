#!/usr/bin/env python3
"""Plan and run a suite, then print its table: what `make glue`, `make squad` and `make table1` call.

python scripts/suite.py glue --method qgoft,lora@r2 --tasks mrpc,rte --seeds 0,1 --protocol goft_icml24
"""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from _settings import CONFIGS, check_choice, choices, compose_settings, gap

from qgoft.errors import QgoftError, choose
from qgoft.ledger import Identity, identify
from qgoft.pocket.data import is_generated, pocket_files
from qgoft.records import RecordError, compute_key, read_records
from qgoft.report.scores import SUITES, Record, Row, build_table, row_label
from qgoft.report.win_rates import build_categories, build_win_rates, read_ratings
from qgoft.settings import DECODER_SUITES, RunSettings, method_label, settings_from_record, settings_in_key
from qgoft.tasks.sources import TOKENIZER_FILES, remote_size, repositories

SCRIPTS = Path(__file__).resolve().parent
REPOSITORY = SCRIPTS.parent
# Seconds of one run where no record tells: only the embedded protocol has a known size.
TYPICAL_SECONDS = {"pocket": 22}
# Settings to compose, from which several processes are worth starting.
MANY = 12
# protocol, task, method, seed: a cell with more words may differ from the protocol's own settings.
OWN_WORDS = 4
# Rows that say what the others are worth, from the committed records.
CONTROLS = {"encoder": [("linear", "pretrained"), ("lora", "random")], "decoder": [("base", "pretrained"), ("lora", "random")]}
RANDOM_MODELS = {
    "glue": "pocket_deberta_random",
    "squad": "pocket_deberta_random",
    "vtab": "pocket_vit_random",
    **dict.fromkeys(DECODER_SUITES, "pocket_llama_random"),
}


@dataclass(frozen=True)
class Cell:
    """One run of the plan: its words on Hydra's command line, and what they resolve to."""

    words: tuple[str, ...]
    settings: RunSettings
    key: str | None = None

    @property
    def where(self) -> str:
        return f"{self.settings.task.full_name} {self.settings.method.name} seed {self.settings.seed}"


def split_list(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def method_words(name: str) -> list[str]:
    """lora@r2 -> method=lora method.variant=r2"""
    method, at, variant = name.partition("@")
    check_choice("method", method)
    return [f"method={method}", *([f"method.variant={variant}"] if at else [])]


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """Every run that was asked for.

    Raises:
        QgoftError: a name is unknown, or a cell does not exist.
    """
    check_choice("protocol", arguments.protocol)
    suite = arguments.suite
    known = [name.removeprefix(f"{suite}/") for name in choices("task") if name.startswith(f"{suite}/")]
    tasks = split_list(arguments.tasks) or [task for task in known if not gap(arguments.protocol, f"{suite}/{task}", "")]
    if not tasks:
        raise QgoftError(
            f"protocol {arguments.protocol} has no task of suite {suite}: {gap(arguments.protocol, f'{suite}/{known[0]}', '')}; change PROTOCOL"
        )
    common = [f"protocol={arguments.protocol}"]
    if arguments.model:
        check_choice("model", arguments.model)
        common.append(f"model={arguments.model}")
    if arguments.data:
        common.append(f"data.root={arguments.data}")
    common += arguments.overrides
    asked = []
    for method in split_list(arguments.method):
        for task in tasks:
            task = task.removeprefix(f"{suite}/")
            if task not in known:
                raise QgoftError(f"unknown task {task!r} of suite {suite}; allowed are {', '.join(known)}; change TASKS")
            asked.append((*common, f"task={suite}/{task}", *method_words(method)))
    return compose_cells(asked, split_list(arguments.seeds), arguments.jobs)


@functools.cache
def composed(words: tuple[str, ...]) -> RunSettings:
    """The settings of some words. Composing takes a fifth of a second, and tables ask for the same words many times."""
    return compose_settings(list(words))


def compose_all(asked: list[tuple[str, ...]], jobs: int) -> list[RunSettings]:
    """The settings of each, several at a time where there are many."""
    if jobs == 1 or len(asked) < MANY:
        return [composed(words) for words in asked]
    with start_pool(jobs) as pool:
        return list(pool.map(composed, asked, chunksize=4))


def start_pool(jobs: int) -> ProcessPoolExecutor:
    """Helpers that leave Ctrl-C to this process, which tells of it in a line."""
    return ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


def compose_cells(asked: list[tuple[str, ...]], seeds: list[str], jobs: int) -> list[Cell]:
    """One cell per words and seed."""
    for seed in seeds:
        if not seed.isdigit():
            raise QgoftError(f"seed {seed!r} is no number; SEEDS is a list such as 0,1,2")
    every = zip(asked, compose_all(asked, jobs), strict=True)
    return [Cell((*words, f"seed={seed}"), dataclasses.replace(settings, seed=int(seed))) for words, settings in every for seed in seeds]


def generate(cells: list[Cell], jobs: int) -> None:
    """Embedded rows that are not in the cache yet, several tasks at a time: drawing VTAB's twenty one by one takes half a minute."""
    tasks = {(cell.settings.task.suite, cell.settings.task.name) for cell in cells if cell.settings.data.source == "pocket"}
    missing = sorted(task for task in tasks if not is_generated(*task))
    if len(missing) > 1 and jobs > 1:
        with start_pool(min(jobs, len(missing))) as pool:
            list(pool.map(pocket_files, *zip(*missing, strict=True)))


def announce(cells: list[Cell], done: int, records: list[Record], jobs: int, protocol: str) -> None:
    known: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["protocol"] == protocol and record["status"] == "done":
            times = [datetime.fromisoformat(record[name]) for name in ("started", "finished")]
            known[record["method"]].append((times[1] - times[0]).total_seconds())
    seconds = 0.0
    for cell in cells:
        times = known.get(cell.settings.method.name) or [s for v in known.values() for s in v]
        seconds += sum(times) / len(times) if times else TYPICAL_SECONDS.get(protocol, float("nan"))
    left = seconds * (len(cells) - done) / max(1, len(cells)) / jobs
    if done == len(cells):
        forecast = "nothing left to do"
    elif left != left:  # not a number: nothing is known about this protocol yet
        forecast = f"on {jobs} process{'es' if jobs > 1 else ''}; how long is not known yet"
    else:
        forecast = f"about {int(left) // 60} min {int(left) % 60:02d} s on {jobs} process{'es' if jobs > 1 else ''}"
    suite = SUITES[cells[0].settings.task.suite]
    print(f"{suite}, protocol {protocol}: {len(cells)} runs planned, {done} done, {forecast}", flush=True)


def launch(pending: list[Cell], arguments: argparse.Namespace) -> int:
    """Run what is left: one process per sweep, so that Hydra's launchers do the rest. Returns the number of failed commands."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in pending:
        shared = tuple(word for word in cell.words if not word.startswith(("task=", "seed=")))
        task, seed = (next(w.partition("=")[2] for w in cell.words if w.startswith(f"{name}=")) for name in ("task", "seed"))
        groups[shared][task].append(seed)
    if arguments.nproc > 1:
        return sum(_call([*processes(arguments), str(SCRIPTS / "train.py"), *cell.words]) != 0 for cell in pending)
    failed = 0
    for shared, tasks in groups.items():
        by_seeds: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for task, seeds in tasks.items():
            by_seeds[tuple(seeds)].append(task)
        for seeds, names in by_seeds.items():
            jobs = min(arguments.jobs, len(seeds) * len(names))
            launcher = arguments.launcher or ("joblib" if jobs > 1 else "basic")
            words = ["-m", *shared, f"task={','.join(names)}", f"seed={','.join(seeds)}", f"hydra/launcher={launcher}"]
            if launcher == "joblib":
                words += [f"hydra.launcher.n_jobs={jobs}", "hydra.launcher.verbose=0"]
            failed += _call([sys.executable, str(SCRIPTS / "train.py"), *words]) != 0
            if failed and arguments.failfast:
                return failed
    return failed


def processes(arguments: argparse.Namespace) -> list[str]:
    """The command that starts a run in several processes: torchrun, or accelerate with a file of configs/accelerate."""
    python = [sys.executable, "-m"]
    if not arguments.accelerate:
        return [*python, "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.nproc}"]
    file = CONFIGS / "accelerate" / f"{arguments.accelerate}.yaml"
    return [*python, "accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(arguments.nproc)]


def _call(command: list[str]) -> int:
    """Ctrl-C reaches the runs themselves; they are given the time to write what stopped them."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def is_current(record: Record) -> bool:
    """Whether this version of the code would give the record the key it has: RESULTS_VERSION and the meaning of settings are unchanged."""
    provenance = record["provenance"]
    key = compute_key(
        settings_in_key(settings_from_record(record)),
        world_size=provenance["hardware"]["processes"],
        data_fingerprint=provenance["data"]["fingerprint"],
        model_sha256=provenance["model"]["sha256"],
    )
    return key == record["key"]


def matching(records: list[Record], cell: Cell) -> Record | None:
    """The done record of a cell: by its key where rows and weights are known, else the newest made with exactly these settings."""
    settings = cell.settings
    # First by what is cheap to compare: hundreds of records times hundreds of cells took a minute.
    of_cell = (settings.protocol, settings.task.suite, settings.task.name, settings.method.name, settings.seed)
    alike = (r for r in records if (r["protocol"], r["suite"], r["task"], r["method"], r["seed"]) == of_cell)
    done = [record for record in alike if record["status"] == "done"]
    if cell.key is not None:
        return next((record for record in done if record["key"] == cell.key), None)
    wanted = settings_in_key(settings)
    found = [r for r in done if settings_in_key(settings_from_record(r)) == wanted and is_current(r)]
    return max(found, key=lambda record: record["finished"]) if found else None


def is_altered(cell: Cell) -> bool:
    """Whether the settings are others than the protocol's own for this task and method."""
    own = [w for w in cell.words if w.startswith(("protocol=", "task=", "method=", "method.variant="))]
    if cell.settings.model.init == "random":
        own.append(f"model={RANDOM_MODELS[cell.settings.task.suite]}")
    if {*own, f"seed={cell.settings.seed}"} == set(cell.words):
        return False
    if any(word.startswith("recipe=") for word in cell.words):
        return True  # borrowed from another method; there may be none of its own to compare with
    unaltered = dataclasses.replace(composed(tuple(own)), seed=cell.settings.seed)
    return settings_in_key(unaltered) != settings_in_key(cell.settings)


def collect_rows(cells: list[Cell], records: list[Record], *, is_context: bool = False) -> list[Row]:
    """Rows of the table, in the order of the plan."""
    rows: dict[str, Row] = {}
    for cell in cells:
        record = matching(records, cell)
        method = cell.settings.method
        name = method_label(method.name, method.variant)
        label = f"random + {name}" if cell.settings.model.init == "random" else name
        row = rows.setdefault(label, Row(label, {}, is_context))
        if len(cell.words) > OWN_WORDS and is_altered(cell):
            row.is_altered = True
        if record:
            assert row_label(record) == label
            row.records.setdefault(cell.settings.task.name, []).append(record)
    return [row for row in rows.values() if row.records or not is_context]


def control_rows(arguments: argparse.Namespace, shown: set[str], methods: list[str]) -> list[Row]:
    """Controls of the embedded protocol from results/measured: the head alone, and the same methods on a random backbone."""
    if arguments.protocol != "pocket" or arguments.model:
        return []
    measured = read_records(REPOSITORY / "results" / "measured")
    kind = "decoder" if arguments.suite in DECODER_SUITES else "encoder"
    wanted = [*CONTROLS[kind], *((method.partition("@")[0], "random") for method in methods if method.partition("@")[0] != "lora")]
    # Only what has a record is composed.
    known = {(r["suite"], r["method"], r["settings"]["model"]["init"], r["task"]) for r in measured}
    asked = []
    for method, init in wanted:
        model = [f"model={RANDOM_MODELS[arguments.suite]}"] if init == "random" else []
        for task in (name for name in choices("task") if name.startswith(f"{arguments.suite}/")):
            if (arguments.suite, method, init, task.partition("/")[2]) not in known:
                continue
            asked.append(("protocol=pocket", f"task={task}", f"method={method}", *model))
    cells = compose_cells(asked, [str(seed) for seed in protocol_seeds("pocket")], arguments.jobs)
    return [row for row in collect_rows(cells, measured, is_context=True) if row.label not in shown]


def protocol_seeds(protocol: str) -> list[int]:
    return yaml.safe_load((CONFIGS / "protocol" / f"{protocol}.yaml").read_text())["seeds"]


def print_table(arguments: argparse.Namespace, cells: list[Cell], root: Path) -> None:
    records = read_records(root / arguments.records)
    rows = collect_rows(cells, records)
    rows += control_rows(arguments, {row.label for row in rows}, split_list(arguments.method))
    table = build_table(arguments.suite, arguments.protocol, rows)
    paths = table.write(root / "tables")
    print()
    print(table.terminal())
    print_ratings(arguments.protocol, rows, root)
    shown = f"{paths[0].parent}/{paths[0].stem}.{{{','.join(path.suffix[1:] for path in paths)}}}"
    print(f"{shown}   {root}/{arguments.records}/*/record.json")


def print_ratings(protocol: str, rows: list[Row], root: Path) -> None:
    """What an average of ratings hides: categories, and the first method against each other."""
    records = [record for row in rows for record in row.records.get("vicuna", [])]
    rated = read_ratings(root, records) | read_ratings(REPOSITORY / "results" / "measured", records)
    tables = [build_categories(rated, protocol), build_win_rates(rated, protocol)] if rated else []
    for table in filter(None, tables):
        table.write(root / "tables")
        print(table.terminal())


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted({name.partition("/")[0] for name in choices("task")}))
    parser.add_argument("--method", default="qgoft", help="comma list; name or name@variant")
    parser.add_argument("--tasks", default="", help="comma list, without the suite; default all")
    parser.add_argument("--seeds", default="", help="comma list; default 0, or the protocol's with --all-seeds")
    parser.add_argument("--all-seeds", action="store_true")
    parser.add_argument("--protocol", default="pocket")
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="", help="directory instead of the hub")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--launcher", default="")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--accelerate", default="", help="a file of configs/accelerate, for several GPUs")
    parser.add_argument("--records", default="runs", choices=["runs", "measured"])
    parser.add_argument("--action", default="run", choices=["run", "table", "status", "fetch"])
    parser.add_argument("--failfast", action="store_true")
    parser.add_argument("overrides", nargs="*", help="any further Hydra overrides")
    arguments = parser.parse_intermixed_args(words)
    if arguments.accelerate:
        choose("accelerate", arguments.accelerate, choices("accelerate"), "change ACCELERATE")
        if arguments.nproc < 2:
            raise QgoftError(f"ACCELERATE={arguments.accelerate} divides a run among processes; set NPROC to the number of GPUs")
        import torch  # takes two seconds, and is asked for nothing else here

        if torch.cuda.device_count() < arguments.nproc:
            raise QgoftError(
                f"ACCELERATE={arguments.accelerate} needs {arguments.nproc} GPUs, and this machine has {torch.cuda.device_count()}; lower NPROC, or "
                "leave ACCELERATE out: NPROC alone works on CPUs"
            )
    if not arguments.seeds:
        check_choice("protocol", arguments.protocol)
        arguments.seeds = ",".join(map(str, protocol_seeds(arguments.protocol))) if arguments.all_seeds else "0"
    return arguments


def show_status(cells: list[Cell], identities: list[Identity]) -> None:
    for cell, identity in zip(cells, identities, strict=True):
        record = identity.read()
        state = "missing" if record is None else record["status"] + (f": {record['reason']}" if record["reason"] else "")
        print(f"{cell.where:<34} {identity.key[:12]}  {state}")


def announce_downloads(cells: list[Cell]) -> None:
    """Sizes before anything is downloaded. Files that are here already are not fetched again."""
    wanted: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        s = cell.settings
        if s.data.source == "hub" and s.data.root is None:
            for repository, patterns in repositories(s.task).items():
                wanted.setdefault((repository, "dataset", s.data.revision), []).extend(patterns)
        if s.model.hub and s.model.path is None:
            wanted[s.model.hub, "model", s.model.revision] = [*TOKENIZER_FILES, "*.safetensors"]
    for (repository, kind, revision), patterns in wanted.items():
        size = remote_size(repository, kind, revision, patterns)
        print(f"{kind} {repository} at {revision}: {'size not known' if size is None else f'{size / 1e6:.1f} MB'}", flush=True)


def show_fetched(cells: list[Cell], identities: list[Identity]) -> None:
    seen: dict[str, int] = {}
    for identity in identities:
        paths = [path for parts in identity.data.files.values() for path in parts]
        seen[f"data {identity.data.source} {paths[0].parent.name}"] = sum(path.stat().st_size for path in paths)
        seen[f"model {identity.model.source}"] = sum(path.stat().st_size for path in identity.model.folder.iterdir() if path.is_file())
    for name, size in seen.items():
        print(f"{name:<44} {size / 1e6:10.1f} MB on this machine")


def main(words: list[str]) -> int:
    arguments = parse(words)
    cells = plan(arguments)
    root = Path(cells[0].settings.results.root)
    if arguments.action == "table" or arguments.records == "measured":
        print_table(arguments, cells, root)
        return 0
    if arguments.action == "fetch":
        announce_downloads(cells)
    generate(cells, arguments.jobs)
    identities = [identify(cell.settings, processes=arguments.nproc) for cell in cells]
    cells = [dataclasses.replace(cell, key=identity.key) for cell, identity in zip(cells, identities, strict=True)]
    if arguments.action == "status":
        show_status(cells, identities)
        return 0
    if arguments.action == "fetch":
        show_fetched(cells, identities)
        return 0
    pending = [cell for cell, identity in zip(cells, identities, strict=True) if not identity.is_done]
    records = read_records(root / "runs") if (root / "runs").is_dir() else []
    jobs = max(1, min(arguments.jobs, len(pending) or 1))
    announce(cells, len(cells) - len(pending), records, jobs, arguments.protocol)
    if pending:
        launch(pending, arguments)
    missing = [cell for cell, identity in zip(cells, identities, strict=True) if not identity.is_done]
    print_table(arguments, cells, root)
    for cell in missing:
        record = identities[cells.index(cell)].read()
        print(f"qgoft: {cell.where} is not done: {record['reason'] if record else 'it left no record; see above'}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (QgoftError, RecordError) as error:
        print(f"qgoft: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("qgoft: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
