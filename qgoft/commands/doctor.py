"""Print versions, devices, backend of the operator, hub, caches, and the missing downloads of a protocol.

Usage:
    qgoft doctor
    qgoft doctor --protocol goft_icml24    also the data sets and models of the protocol that are not cached
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import qgoft
from qgoft.cli import Parser
from qgoft.config import locations
from qgoft.machine import processor_name

ADAPTER = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
SUITE = ("datasets", "evaluate", "hydra-core", "wandb", "scikit-learn", "pyarrow", "jinja2", "vl-convert-python")
OPTIONAL = ("triton", "tensorboard", "lm-eval")


def versions(names: tuple[str, ...]) -> str:
    """Return installed versions in words."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def installation() -> Iterator[str]:
    where = f"checkout {locations.REPOSITORY}" if locations.REPOSITORY else f"package {locations.PACKAGE}"
    yield f"qgoft: {qgoft.__version__}, {where}, results in {locations.RESULTS.resolve()}"
    yield f"python: {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"adapter: {versions(ADAPTER)}"
    yield f"suite: {versions(SUITE)}"
    yield f"optional: {versions(OPTIONAL)}"


def devices() -> Iterator[str]:
    import torch

    yield f"cpu: {processor_name() or 'unknown'}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}: {found.name}, {found.total_memory / 1e9:.0f} GB, compute capability {found.major}.{found.minor}"
    if not torch.cuda.is_available():
        yield "cuda: not available"


def hub() -> Iterator[str]:
    from huggingface_hub import constants, get_token, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    mode = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} (not contacted)"
    yield f"hub: {mode}, token {'set' if get_token() else 'not set (LLaMA needs one)'}"
    try:
        cache = scan_cache_dir()
        yield f"hub cache: {constants.HF_HUB_CACHE}, {len(cache.repos)} repositories, {cache.size_on_disk / 1e9:.2f} GB"
    except CacheNotFound:
        yield f"hub cache: {constants.HF_HUB_CACHE}, empty"


def caches() -> Iterator[str]:
    place = locations.cache_directory()
    parent = next(path for path in (place, *place.parents) if path.exists())
    state = "writable" if os.access(parent, os.W_OK) else "not writable: set QGOFT_CACHE"
    yield f"qgoft cache: {place}, {state}, {shutil.disk_usage(parent).free / 1e9:.0f} GB free"


def needs(protocol: str) -> Iterator[str]:
    """Yield the repositories of a protocol that are not in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from qgoft.config.compose import compose_settings
    from qgoft.config.suites import suite_names, tasks_of
    from qgoft.errors import QgoftError
    from qgoft.tasks.model_files import TOKENIZER_FILES, WEIGHT_PATTERNS
    from qgoft.tasks.sources import repositories

    wanted: dict[tuple[str, str, str], list[list[str]]] = {}  # alternatives of file patterns, as `fetch` downloads them
    for suite in suite_names():
        for task in tasks_of(suite):
            try:
                settings = compose_settings([f"protocol={protocol}", f"task={suite}/{task}", "method=lora"])
            except QgoftError:
                continue  # not part of the protocol
            if settings.data.source == "hub":
                wanted |= {(name, "dataset", settings.data.revision): [some] for name, some in repositories(settings.task).items()}
            if settings.model.hub:
                weights = [[*TOKENIZER_FILES, *some] for some in WEIGHT_PATTERNS]
                wanted[settings.model.hub, "model", settings.model.revision] = weights

    def is_cached(name: str, kind: str, revision: str, patterns: list[str]) -> bool:
        try:
            place = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=True)
        except LocalEntryNotFoundError:
            return False
        content = set(patterns) - {*TOKENIZER_FILES, "README.md"}
        return any(next(Path(place).glob(pattern), None) for pattern in content)

    missing = [
        f"{kind} {name} at {revision}"
        for (name, kind, revision), alternatives in wanted.items()
        if not any(is_cached(name, kind, revision, patterns) for patterns in alternatives)
    ]
    yield f"protocol {protocol}: {len(wanted)} repositories of the hub, {len(missing)} not in the cache"
    yield from (f"  {line}" for line in missing)
    if missing:
        yield f"  `qgoft fetch all --protocol {protocol}` downloads them (with the sizes)"


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol")
    arguments = parser.parse_args(argv)
    from qgoft.ops.givens.__main__ import describe_backend

    has_suite = importlib.util.find_spec("hydra") is not None
    for part in (installation(), devices(), describe_backend(), hub(), caches()):
        for line in part:
            print(line)
    if arguments.protocol and has_suite:
        from qgoft.config.suites import config_names
        from qgoft.errors import check_choice

        check_choice("protocol", arguments.protocol, config_names("protocol"), "configs/protocol")
        for line in needs(arguments.protocol):
            print(line)
    elif not has_suite:
        from qgoft.errors import INSTALL

        print(f"experiments: not installed: {INSTALL}")
    return 0
