"""Planned runs: their overrides, and the settings that these compose to."""

import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from qgoft.config.compose import check_config_name, compose_settings
from qgoft.config.retention import RetentionSettings
from qgoft.config.settings import MAX_SEED, RunSettings
from qgoft.config.suites import read_config
from qgoft.console import say
from qgoft.errors import QgoftError
from qgoft.records import Record
from qgoft.sweep.settings_cache import cached_settings, store_settings

# Compositions from which parallel processes pay off.
PARALLEL_FROM = 12
ROOT = "results.root="
# Largest range of seeds.
MAX_SEEDS = 1000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: its Hydra overrides, and the settings they compose to.

    Attributes:
        key: key of the run, if rows and weights are known.
        data: checksum of the rows, if the command line names their directory.
        weights: checksum of the weights, if the command line names their directory.
        retention: what to measure of the finished run, instead of running it.
    """

    overrides: tuple[str, ...]
    settings: RunSettings
    key: str | None = None
    data: str | None = None
    weights: str | None = None
    retention: RetentionSettings | None = None

    def matches_origin(self, record: Record) -> bool:
        """Return False if a record was made with other rows or weights than those named on the command line."""
        made = record["provenance"]
        return self.data in (None, made["data"]["fingerprint"]) and self.weights in (None, made["model"]["sha256"])

    @property
    def label(self) -> str:
        method = self.settings.method
        return f"{self.settings.task.full_name} {method.name}@{method.variant} seed {self.settings.seed}"


# Overrides of some runs, and their seeds.
SeededOverrides = tuple[tuple[str, ...], tuple[str, ...]]


def split_list(text: str) -> list[str]:
    """Return the unique names of a comma-separated list."""
    return list(dict.fromkeys(item for item in text.split(",") if item))


def split_seeds(text: str) -> list[str]:
    """Return the unique seeds of a comma-separated list of numbers and ranges: 0,2-4 -> 0, 2, 3, 4."""
    seeds: list[str] = []
    for item in split_list(text):
        first, dash, last = item.partition("-")
        if dash and first.isdigit() and last.isdigit() and 0 <= int(last) - int(first) < MAX_SEEDS:
            seeds += [str(seed) for seed in range(int(first), int(last) + 1)]
        else:
            check_seed(item)
            seeds.append(str(int(item)))
    return list(dict.fromkeys(seeds))


def check_seed(seed: str) -> None:
    """Raise QgoftError unless a text is a valid seed."""
    if not (seed.isascii() and seed.isdigit()) or int(seed) > MAX_SEED:
        raise QgoftError(f"seed {seed!r}: allowed are whole numbers from 0 to {MAX_SEED}; SEEDS is a list or a range such as 0,1,2 or 0-2")


def check_methods(methods: Iterable[str]) -> None:
    """Check the names and variants of methods (`method@variant`) before anything is planned.

    Raises:
        QgoftError: an unknown method or an invalid variant.
    """
    methods = list(methods)
    for name in methods:
        check_config_name("method", name.partition("@")[0])
    variants = {(method, variant) for method, at, variant in (name.partition("@") for name in methods) if at}
    if not variants:
        return
    from qgoft.methods.registry import method_named, parse_variant  # imports torch, which a plan without variants does not need

    for method, variant in sorted(variants):
        parse_variant(method_named(method), variant)


def method_overrides(name: str) -> list[str]:
    """Return the overrides of a method: lora@r2 -> method=lora method.variant=r2."""
    method, at, variant = name.partition("@")
    check_config_name("method", method)
    return [f"method={method}", *([f"method.variant={variant}"] if at else [])]


def common_overrides(protocol: str, model: str, data: str) -> list[str]:
    """Return the overrides that all runs of a command share."""
    return [f"protocol={protocol}", *([f"model={model}"] if model else []), *([f"data.root={data}"] if data else [])]


def as_dict(overrides: Iterable[str]) -> dict[str, str]:
    """Return overrides as setting -> value."""
    return dict(override.split("=", 1) for override in overrides)


def protocol_seeds(protocol: str) -> list[str]:
    """Return the seeds of a protocol."""
    return [str(seed) for seed in read_config(f"protocol/{protocol}")["seeds"]]


def compose_runs(asked: Sequence[tuple[str, ...]], seeds: Sequence[str], jobs: int) -> list[PlannedRun]:
    """Compose one run per list of overrides and seed."""
    return compose_seeded([(overrides, tuple(seeds)) for overrides in asked], jobs)


def compose_seeded(asked: Sequence[SeededOverrides], jobs: int) -> list[PlannedRun]:
    """Compose one run per list of overrides and each of its seeds."""
    for seed in dict.fromkeys(seed for _, seeds in asked for seed in seeds):
        check_seed(seed)
    composed = compose_all([overrides for overrides, _ in asked], jobs)
    return [
        PlannedRun((*overrides, f"seed={seed}"), dataclasses.replace(settings, seed=int(seed)))
        for (overrides, seeds), settings in zip(asked, composed, strict=True)
        for seed in seeds
    ]


@functools.cache
def compose_cached(overrides: tuple[str, ...]) -> RunSettings:
    """Compose settings once per process: it takes a fifth of a second, and tables repeat the same overrides."""
    return compose_settings(list(overrides))


def compose_all(asked: Sequence[tuple[str, ...]], jobs: int) -> list[RunSettings]:
    """Compose several lists of overrides, in parallel if there are many, with a cache on disk."""
    # results.root changes nothing else, so the cache holds the settings without it.
    roots = [next((override for override in overrides if override.startswith(ROOT)), None) for overrides in asked]
    plain = [tuple(o for o in overrides if o != root) for overrides, root in zip(asked, roots, strict=True)]
    return [
        s if root is None else dataclasses.replace(s, results=dataclasses.replace(s.results, root=root.removeprefix(ROOT)))
        for s, root in zip(_compose_plain(plain, jobs), roots, strict=True)
    ]


def _compose_plain(asked: Sequence[tuple[str, ...]], jobs: int) -> list[RunSettings]:
    found = cached_settings(list(dict.fromkeys(asked)))
    missing = list(dict.fromkeys(overrides for overrides in asked if overrides not in found))
    made: dict[tuple[str, ...], RunSettings] = {}
    try:
        if jobs == 1 or len(missing) < PARALLEL_FROM:
            made.update((overrides, compose_cached(overrides)) for overrides in missing)
        else:
            say(f"composing the settings of {len(missing)} runs; the next command reads them from the cache")
            with start_pool(jobs) as pool:
                made.update(zip(missing, pool.map(compose_cached, missing, chunksize=4), strict=True))
    finally:  # Ctrl-C keeps what is composed
        if made:
            store_settings(made)
    found |= made
    return [found[overrides] for overrides in asked]


def start_pool(jobs: int) -> ProcessPoolExecutor:
    """Start worker processes that leave Ctrl-C to this process."""
    return ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
