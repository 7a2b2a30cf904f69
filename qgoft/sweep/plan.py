"""Plans: which runs a suite or an item of a paper is made of, which of them are done, and how long the others will take."""

import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from qgoft.config.compose import CONFIGS, REPOSITORY, check_config_name, compose_settings, unsupported_reason
from qgoft.config.settings import DECODER_SUITES, RANGES, RunSettings, settings_from_dict, settings_from_record, settings_in_key
from qgoft.errors import QgoftError
from qgoft.pocket.data import cache_folder, is_generated, pocket_files
from qgoft.records import Record, base_model, write_atomically
from qgoft.run_id import RunId, identify, key_from_record, rekey
from qgoft.tasks.sources import resolve_data, resolve_model, split_names

# Settings to compose, from which several processes are worth starting.
MANY = 12
# Composed settings that are kept on disk; beyond, the file begins anew.
KEPT = 20_000
ROOT = "results.root="
# Seeds of a range.
MOST_SEEDS = 1000
# Seconds of one run where no record tells: only the embedded protocol has a known size. A decoder's training is shared by its tasks.
TYPICAL_SECONDS = {"pocket": {"glue": 11, "squad": 23, "vtab": 4, "instruct": 9, "math": 11, "commonsense": 5}}
RANDOM_MODELS = {
    "glue": "pocket_deberta_random",
    "squad": "pocket_deberta_random",
    "vtab": "pocket_vit_random",
    **dict.fromkeys(DECODER_SUITES, "pocket_llama_random"),
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of the plan: its words on Hydra's command line, and what they resolve to."""

    overrides: tuple[str, ...]
    settings: RunSettings
    key: str | None = None
    data: str | None = None  # checksums of the rows and of the weights, if the command line names their directory
    weights: str | None = None

    def matches_origin(self, record: Record) -> bool:
        """Return True unless a record was made on other rows or weights than those that the command line names."""
        made = record["provenance"]
        return self.data in (None, made["data"]["fingerprint"]) and self.weights in (None, made["model"]["sha256"])

    @property
    def label(self) -> str:
        method = self.settings.method
        return f"{self.settings.task.full_name} {method.name}@{method.variant} seed {self.settings.seed}"


@dataclass(frozen=True)
class SweepGrid:
    """A product of choices as a file of configs/experiment states it: rows (words that go together), tasks and seeds."""

    rows: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    seeds: tuple[str, ...] | None  # None: the protocol's
    overrides: tuple[str, ...]  # of every row


@dataclass(frozen=True)
class PlannedItem:
    """An item of a paper with its grids under one protocol; `bench` names the benchmark's shape where there is nothing to train."""

    name: str
    grids: tuple[SweepGrid, ...]
    bench: str | None = None
    in_papers: bool = True


def split_list(text: str) -> list[str]:
    """The names of a comma list, each once."""
    return list(dict.fromkeys(item for item in text.split(",") if item))


def split_seeds(text: str) -> list[str]:
    """Return the seeds of a comma list of numbers and ranges, each once: 0,2-4 -> 0, 2, 3, 4."""
    seeds: list[str] = []
    for item in split_list(text):
        first, dash, last = item.partition("-")
        if dash and first.isdigit() and last.isdigit() and 0 <= int(last) - int(first) < MOST_SEEDS:
            seeds += [str(seed) for seed in range(int(first), int(last) + 1)]
        else:
            check_seed(item)
            seeds.append(str(int(item)))
    return list(dict.fromkeys(seeds))


def check_seed(seed: str) -> None:
    """Refuse what no random generator takes as a seed.

    Raises:
        QgoftError: naming what came.
    """
    low, high = RANGES["seed"]
    if not (seed.isascii() and seed.isdigit()) or not low <= int(seed) <= high:
        raise QgoftError(f"seed {seed!r}: allowed are whole numbers from {low} to {high}; SEEDS is a list or a range such as 0,1,2 or 0-2")


def check_methods(methods: Iterable[str]) -> None:
    """Refuse an unknown method, and `method@variant` whose method has no such variant, before anything is planned with it.

    Raises:
        QgoftError: naming the methods, or the form that is needed.
    """
    methods = list(methods)
    for name in methods:
        check_config_name("method", name.partition("@")[0])
    variants = {(method, variant) for method, at, variant in (name.partition("@") for name in methods) if at}
    if not variants:
        return
    from qgoft.methods.registry import REGISTRY, parse_variant  # imports torch, which a plan without variants does not need

    for method, variant in sorted(variants):
        if method in REGISTRY:
            parse_variant(REGISTRY[method], variant)


def method_overrides(name: str) -> list[str]:
    """lora@r2 -> method=lora method.variant=r2"""
    method, at, variant = name.partition("@")
    check_config_name("method", method)
    return [f"method={method}", *([f"method.variant={variant}"] if at else [])]


def common_overrides(protocol: str, model: str, data: str) -> list[str]:
    """What the command line says for every cell."""
    return [f"protocol={protocol}", *([f"model={model}"] if model else []), *([f"data.root={data}"] if data else [])]


def named(words: Iterable[str]) -> dict[str, str]:
    """Setting -> value, of words on Hydra's command line."""
    return dict(word.split("=", 1) for word in words)


def protocol_seeds(protocol: str) -> list[str]:
    return [str(seed) for seed in yaml.safe_load((CONFIGS / "protocol" / f"{protocol}.yaml").read_text())["seeds"]]


# --- composing -------------------------------------------------------------------------------------------------------------------------


@functools.cache
def compose_cached(words: tuple[str, ...]) -> RunSettings:
    """The settings of some words. Composing takes a fifth of a second, and tables ask for the same words many times."""
    return compose_settings(list(words))


@functools.cache
def _configs_version() -> str:
    """Changes with anything that composing depends on, so that kept settings are never stale."""
    digest = hashlib.sha256()
    code = sorted((REPOSITORY / "qgoft" / "config").glob("*.py"))
    for path in [*sorted(CONFIGS.rglob("*.yaml")), *code]:
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compose_all(asked: Sequence[tuple[str, ...]], jobs: int) -> list[RunSettings]:
    """The settings of each, several at a time where there are many; those composed before are read from the user's cache."""
    # Where results go changes nothing else: what was composed for one folder serves every other.
    places = [next((word for word in words if word.startswith(ROOT)), None) for words in asked]
    plain = [tuple(word for word in words if word != place) for words, place in zip(asked, places, strict=True)]
    found = _compose_plain(plain, jobs)
    return [
        s if place is None else dataclasses.replace(s, results=dataclasses.replace(s.results, root=place.removeprefix(ROOT)))
        for s, place in zip(found, places, strict=True)
    ]


def _compose_plain(asked: Sequence[tuple[str, ...]], jobs: int) -> list[RunSettings]:
    distinct = list(dict.fromkeys(asked))
    if len(distinct) < MANY:
        return [compose_cached(words) for words in asked]
    path = cache_folder() / "settings" / f"{_configs_version()}.json"
    kept = _read_kept(path)
    missing = [words for words in distinct if "\n".join(words) not in kept]
    if missing and (jobs == 1 or len(missing) < MANY):
        found = [compose_cached(words) for words in missing]
    elif missing:
        with start_pool(jobs) as pool:
            found = list(pool.map(compose_cached, missing, chunksize=4))
    if missing:
        kept |= {"\n".join(words): dataclasses.asdict(settings) for words, settings in zip(missing, found, strict=True)}
        _write_kept(path, kept)
    built = {words: settings_from_dict(kept["\n".join(words)]) for words in distinct}
    return [built[words] for words in asked]


def _read_kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and len(kept) < KEPT else {}


def _write_kept(path: Path, kept: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if old != path:
                old.unlink(missing_ok=True)
        write_atomically(path, json.dumps(kept))
    except OSError:
        return  # a cache that cannot be written costs time alone


def start_pool(jobs: int) -> ProcessPoolExecutor:
    """Helpers that leave Ctrl-C to this process, which tells of it in a line."""
    return ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )


def compose_runs(asked: Sequence[tuple[str, ...]], seeds: Sequence[str], jobs: int) -> list[PlannedRun]:
    """One cell per words and seed."""
    return compose_seeded([(words, tuple(seeds)) for words in asked], jobs)


def compose_seeded(asked: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], jobs: int) -> list[PlannedRun]:
    """One cell per words and each of their seeds."""
    for seed in dict.fromkeys(seed for _, seeds in asked for seed in seeds):
        check_seed(seed)
    every = zip(asked, compose_all([words for words, _ in asked], jobs), strict=True)
    return [
        PlannedRun((*words, f"seed={seed}"), dataclasses.replace(settings, seed=int(seed)))
        for (words, seeds), settings in every
        for seed in seeds
    ]


# --- items of the papers ---------------------------------------------------------------------------------------------------------------


def read_items(protocol: str) -> dict[str, PlannedItem]:
    """Every item of configs/experiment by its name, as it is under a protocol (the embedded one has twins of its own size)."""
    items: dict[str, PlannedItem] = {}
    for path in sorted((CONFIGS / "experiment").rglob("*.yaml")):
        data = yaml.safe_load(path.read_text())
        item = data["item"]
        if item.get("protocol", protocol) != protocol:
            continue
        params = dict(data.get("hydra", {}).get("sweeper", {}).get("params", {}))
        rows = item.get("rows")
        # Every protocol has its own seeds; a file's are those of the papers.
        seeds = None
        if protocol == "pocket" and "pocket" in item:
            changed = item["pocket"].get("params", {})
            params = {name: value for name, value in {**params, **changed}.items() if value is not None}
            rows = item["pocket"].get("rows", rows)
            seeds = tuple(split_list(str(changed["seed"]))) if "seed" in changed else None
        known = items.get(item["name"], PlannedItem(item["name"], ()))
        grids = (*known.grids, _grid(params, rows, seeds)) if params else known.grids
        items[item["name"]] = PlannedItem(item["name"], grids, item.get("bench", {}).get("shape"), item.get("in_papers", True))
    return items


def _grid(params: dict[str, Any], rows: list[str] | None, seeds: tuple[str, ...] | None) -> SweepGrid:
    tasks = tuple(split_list(params.pop("task")))
    params.pop("seed", None)
    choices = {name: split_list(str(value)) for name, value in params.items()}
    fixed = tuple(f"{name}={values[0]}" for name, values in choices.items() if len(values) == 1 and name != "method")
    swept = {name: values for name, values in choices.items() if len(values) > 1 or name == "method"}
    products = itertools.product(*([f"{name}={value}" for value in values] for name, values in swept.items()))
    every = tuple(tuple(words) for words in products) if rows is None else tuple(tuple(row.split()) for row in rows)
    return SweepGrid(every, tasks, seeds, fixed)


@dataclass(frozen=True)
class ItemFilter:
    """What the command line asks of an item."""

    protocol: str
    methods: tuple[str, ...] = ()  # empty: the item's
    tasks: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    model: str = ""
    data: str = ""
    overrides: tuple[str, ...] = ()


def item_overrides(item: PlannedItem, ask: ItemFilter) -> tuple[list[tuple[tuple[str, ...], tuple[str, ...]]], list[str]]:
    """The words of every cell of an item with their seeds, and why cells are left out.

    Raises:
        QgoftError: nothing of the item is left, or it has no such task.
    """
    shared = common_overrides(ask.protocol, ask.model, ask.data)
    known = list(dict.fromkeys(task for grid in item.grids for task in grid.tasks))
    for task in ask.tasks:
        if not any(task in (name, name.partition("/")[2]) for name in known):
            raise QgoftError(f"item {item.name} has no task {task!r}; it has {', '.join(known)}; change TASKS")
    asked, left_out = [], []
    for number, grid in enumerate(item.grids):
        seeds = ask.seeds or grid.seeds or tuple(protocol_seeds(ask.protocol))
        for row, task in itertools.product(_narrow(item, number, ask.methods), grid.tasks):
            if ask.tasks and not {task, task.partition("/")[2]} & set(ask.tasks):
                continue
            method = named(row)["method"]
            reason = unsupported_reason(ask.protocol, task, method)
            if reason:
                left_out.append(f"{method} on {task}: {reason}")
                continue
            model = [word for word in grid.overrides if not (ask.model and word.startswith("model="))]
            asked.append(((*shared, f"task={task}", *row, *model, *ask.overrides), seeds))
    return asked, list(dict.fromkeys(left_out))


def _narrow(item: PlannedItem, number: int, methods: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The rows of one grid that were asked for; what the item does not have is added where a row is a method and no more."""
    grid = item.grids[number]
    if not methods:
        return grid.rows
    every = {row for other in item.grids for row in other.rows}
    chosen = []
    for name in methods:
        words = tuple(method_overrides(name))
        mine = [row for row in grid.rows if set(words) <= {*row, *grid.overrides}]
        if mine:
            chosen += mine
        elif any(set(words) <= {*row, *other.overrides} for other in item.grids for row in other.rows):
            continue  # of another grid of the item
        elif all(len(row) == 1 for row in every):
            chosen += [words] if number == 0 else []
        else:
            known = sorted({named(row)["method"] for row in every})
            raise QgoftError(f"item {item.name} has no row of {name}; it has {', '.join(known)}; change METHOD")
    return tuple(dict.fromkeys(chosen))


# --- what is done, what is left --------------------------------------------------------------------------------------------------------


def generate(planned_runs: Iterable[PlannedRun], jobs: int) -> None:
    """Embedded rows that are not in the cache yet, several tasks at a time: drawing VTAB's twenty one by one takes half a minute."""
    # Decoders' rows are drawn in a moment, and several tasks share them.
    tasks = {
        (c.settings.task.suite, c.settings.task.name)
        for c in planned_runs
        if c.settings.data.source == "pocket" and not c.settings.task.sources
    }
    missing = sorted(task for task in tasks if not is_generated(*task))
    if len(missing) > 1 and jobs > 1:
        with start_pool(min(jobs, len(missing))) as pool:
            list(pool.map(pocket_files, *zip(*missing, strict=True)))


def identify_all(
    planned_runs: Sequence[PlannedRun], processes: int, problems: dict[str, QgoftError] | None = None
) -> tuple[list[PlannedRun], list[RunId]]:
    """The cells with their keys. Rows and weights are looked at once each, whatever the number of cells.

    Args:
        problems: where it is given, cells whose rows or weights cannot be had are left out, and named here: `math/math with llama-3.2-3b` -> why.
    """
    places: dict[tuple[Any, ...], RunId] = {}
    # The seeds of a cell share these objects, and all methods of a task their content.
    spelled: dict[tuple[int, ...], str] = {}
    keyed, run_ids = [], []
    for planned in planned_runs:
        s = planned.settings
        objects = (id(s.task), id(s.data), id(s.model))
        if objects not in spelled:
            spelled[objects] = repr((s.task, s.data, s.model))
        place = (spelled[objects], s.eval_scheme, s.results.root)
        known = places.get(place)
        if known is None:
            name = f"{s.task.full_name} with {s.model.name}"
            if problems is not None and name in problems:
                continue
            try:
                known = places[place] = identify(s, processes=processes)
            except QgoftError as error:
                if problems is None:
                    raise
                problems[name] = error
                continue
        run_id = rekey(known, s, processes=processes)
        keyed.append(dataclasses.replace(planned, key=run_id.key))
        run_ids.append(run_id)
    return keyed, run_ids


def resolve_named_paths(planned_runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the cells with the checksums of rows and weights whose directory the command line names. Nothing is downloaded or generated.

    Raises:
        QgoftError: a directory does not hold what it should.
    """
    rows: dict[str, str] = {}
    weights: dict[str, str] = {}
    named_cells = []
    for planned in planned_runs:
        s = planned.settings
        place, model = repr((s.task, s.data, s.eval_scheme)), repr(s.model)
        if (s.data.root is not None or s.task.path is not None) and place not in rows:
            rows[place] = resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme)).fingerprint
        if s.model.path is not None and model not in weights:
            weights[model] = resolve_model(s.model).sha256
        named_cells.append(dataclasses.replace(planned, data=rows.get(place), weights=weights.get(model)))
    return named_cells


MeanSeconds = dict[tuple[str, ...], float]


def mean_seconds(records: Sequence[Record], protocol: str) -> MeanSeconds:
    """(suite, method) and (suite,) -> how long a run of a protocol took, on average."""
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        if record["protocol"] == protocol and record["status"] == "done":
            begun, ended = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
            seconds = (ended - begun).total_seconds()
            if "resumed" in record["provenance"]:  # what begun says is of its last part
                seconds = max(seconds, (record["cost"].get("setup_seconds") or 0.0) + (record["cost"]["seconds"] or 0.0))
            if seconds >= 0:  # a clock that was set back in the middle says nothing
                known[record["suite"], record["method"]].append(seconds)
                known[(record["suite"],)].append(seconds)
    return {place: statistics.fmean(times) for place, times in known.items()}


def sum_seconds(known: MeanSeconds, protocol: str, runs: Iterable[tuple[str, str, int]]) -> float | None:
    """How long some runs (suite, method, how many) will take one after the other; None where nothing tells."""
    total = 0.0
    for suite, method, number in runs:
        typical = TYPICAL_SECONDS.get(protocol, {}).get(suite)
        seconds = known.get((suite, method), known.get((suite,), typical))
        if seconds is None:
            return None
        total += seconds * number
    return total


def expected_seconds(planned_runs: Sequence[PlannedRun], records: Sequence[Record], protocol: str) -> float | None:
    """How long the runs would take one after the other, from records of the same method and suite; None where nothing tells."""
    runs = ((planned.settings.task.suite, planned.settings.method.name, 1) for planned in planned_runs)
    return sum_seconds(mean_seconds(records, protocol), protocol, runs)


def announce(
    title: str, planned_runs: Sequence[PlannedRun], left: Sequence[PlannedRun], records: Sequence[Record], jobs: int, protocol: str
) -> None:
    """Before anything starts: planned, done, left, and about how long."""
    jobs = max(1, min(jobs, len(left)))
    on = f"on {jobs} process{'es' if jobs > 1 else ''}"
    seconds = expected_seconds(left, records, protocol)
    if not left:
        forecast = "nothing left to do"
    elif seconds is None:
        forecast = f"{on}; how long is not known yet"
    else:
        forecast = f"about {format_duration(seconds / jobs)} {on}"
    print(
        f"{title}, protocol {protocol}: {format_runs(len(planned_runs))} planned, {len(planned_runs) - len(left)} done, {forecast}",
        flush=True,
    )


def format_runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min {int(seconds) % 60:02d} s"


# --- records of a plan -----------------------------------------------------------------------------------------------------------------


def is_current(record: Record) -> bool:
    """Whether this version of the code would give the record the key it has: RESULTS_VERSION and the meaning of settings are unchanged. A
    record whose settings this version refuses is named, and is none of its own."""
    try:
        return key_from_record(record) == record["key"]
    except QgoftError as error:
        print(
            f"qgoft: left out: run {record['key'][:16]} ({record['task']}, {record['method']}), whose settings are none today: {error}",
            file=sys.stderr,
        )
        return False


def origin(record: Record) -> tuple[Any, ...]:
    """Return what distinguishes runs with the same settings: data, weights and number of processes."""
    made = record["provenance"]
    return made["data"]["fingerprint"], base_model(record), made["hardware"]["processes"]


class RecordIndex:
    """Records, found by cell: by its key where rows and weights are known, else the newest made with exactly these settings."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self._by_key = {record["key"]: record for record in records}
        # First by what is cheap to compare: hundreds of records times hundreds of cells took a minute.
        self._alike: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
        for record in records:
            self._alike[tuple(record[name] for name in ("protocol", "suite", "task", "method", "variant", "seed"))].append(record)
        self._in_key: dict[str, dict[str, Any] | None] = {}
        self._others: dict[str, int] = {}
        self._methods: set[tuple[str, str, str]] | None = None

    def has_any(self, words: Sequence[str]) -> bool:
        """Whether any record is of the protocol, task and method of some words: what has none need not be composed to be found missing."""
        if self._methods is None:
            self._methods = {(r["protocol"], f"{r['suite']}/{r['task']}", r["method"]) for r in self.records}
        asked = named(words)
        return (asked["protocol"], asked["task"], asked["method"]) in self._methods

    def find(self, planned: PlannedRun, *, only_done: bool = True) -> Record | None:
        if planned.key is not None:
            record = self._by_key.get(planned.key)
            return record if record is not None and (record["status"] == "done" or not only_done) else None
        s = planned.settings
        alike = self._alike.get((s.protocol, s.task.suite, s.task.name, s.method.name, s.method.variant, s.seed), [])
        if only_done:
            alike = [record for record in alike if record["status"] == "done"]
        if not alike:
            return None
        wanted = settings_in_key(s)
        # Where the rows come from is no setting that counts: their checksum does, which only the record has. Drawn rows are no official ones.
        alike = [record for record in alike if record["settings"]["data"]["source"] == s.data.source]
        found = [record for record in alike if self._settings(record) == wanted]
        mine = [record for record in found if planned.matches_origin(record)]
        if not mine:
            return None
        chosen = max(mine, key=lambda record: (record["status"] == "done", record["finished"]))
        self._others[chosen["key"]] = sum(origin(record) != origin(chosen) for record in found)
        return chosen

    def others(self, record: Record) -> int:
        """Return how many records have the settings of one that was found, on other data, weights or number of processes."""
        return self._others.get(record["key"], 0)

    def _settings(self, record: Record) -> dict[str, Any] | None:
        """None where the record is not current."""
        if record["key"] not in self._in_key:
            self._in_key[record["key"]] = settings_in_key(settings_from_record(record)) if is_current(record) else None
        return self._in_key[record["key"]]
