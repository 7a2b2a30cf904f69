"""Data and model files of a run, with checksums: generated rows, a directory, or the hub. Does not import torch."""

import hashlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgoft.config.locations import COMMAND
from qgoft.config.settings import DataSettings, ModelSettings, TaskSettings
from qgoft.errors import QgoftError, format_exception
from qgoft.pocket.data import pocket_files, pocket_fingerprint
from qgoft.pocket.weights import weights_directory
from qgoft.records import file_sha256
from qgoft.tasks.model_files import READ_BESIDE, TOKENIZER_FILES, WEIGHT_PATTERNS, check_directory, list_sha256, weights_sha256
from qgoft.tasks.part_files import FORMATS, checksum, find_in_directory
from qgoft.tasks.pinned_files import pinned_file
from qgoft.tasks.vtab.files import find_directory, list_checksum, split_files, unpack

# Seconds before a failed download is retried, if a retry may help.
RETRY_DELAYS = (1, 2, 4, 8)


@dataclass(frozen=True)
class DataFiles:
    """The parquet files of each split, and their origin for the record."""

    source: str  # pocket, directory, or the hub's repository
    revision: str | None
    fingerprint: str
    files: dict[str, tuple[Path, ...]]
    parts: dict[str, str] = field(default_factory=dict)  # checksum of each file, if several tasks share a training


@dataclass(frozen=True)
class ModelFiles:
    """A model directory in the hub's format, and its origin for the record."""

    source: str
    revision: str | None
    sha256: str
    directory: Path
    files: str | None = None  # checksum of tokenizer and configuration; None for embedded models


def split_names(task: TaskSettings, splits: str) -> list[str]:
    """Return the splits that a run reads, train first. MNLI has two validation sets."""
    sets = ("_matched", "_mismatched") if task.name == "mnli" else ("",)
    if task.sources:
        return list(task.sources)
    if task.suite == "vtab":
        return {"whole": ["train800val200", "test"], "train800": ["train800", "test"]}.get(splits, ["train800", "val200", "test"])
    names = ["train", *(f"validation{s}" for s in sets)]
    if splits == "test":
        names += [f"test{s}" for s in sets]
    return names


def repositories(task: TaskSettings) -> dict[str, list[str]]:
    """Return the hub repositories that a task reads, with the patterns of their files."""
    found: dict[str, list[str]] = {}
    for source in task.sources.values():
        if source.get("hub"):
            found.setdefault(source["hub"], []).extend([*source["files"], "README.md"])
    if task.sources or task.hub is None:
        return found
    return {task.hub: ["*.zip", "README.md"] if task.suite == "vtab" else [f"{task.config}/*.parquet", "README.md"]}


def resolve_data(task: TaskSettings, data: DataSettings, splits: list[str]) -> DataFiles:
    """Locate the rows of a task; generate or download them if necessary.

    Args:
        splits: names of the required splits (`split_names`).

    Raises:
        QgoftError: they are not available; the message says what is missing and how to fix it.
    """
    if data.root is not None and not Path(data.root).is_dir():
        raise QgoftError(
            f"data.root={data.root} {'is not a directory' if Path(data.root).exists() else 'does not exist'}; change DATA or data.root"
        )
    if task.sources:
        return resolve_files(task, data)
    is_pocket = data.source == "pocket" and data.root is None and task.path is None
    if task.suite == "vtab" and not is_pocket:
        return _find_images(task, data, splits)
    if is_pocket:
        directory, source, revision = pocket_files(task.suite, task.name), "pocket", None
    elif data.root is not None:
        directory, source, revision = _directory(task, Path(data.root)), "directory", None
    else:
        snapshot = _download_rows(task, data)
        directory, source, revision = snapshot / task.config, str(task.hub), snapshot.name
        if not directory.is_dir():
            raise QgoftError(
                f"{task.hub} at {revision} has no directory {task.config} of parquet files; set data.root to a directory instead"
            )
    if task.suite == "vtab":
        return DataFiles(source, revision, pocket_fingerprint(directory), split_files(directory, splits))
    files = {split: _split_files(directory, split, task) for split in splits}
    if is_pocket:
        return DataFiles(source, revision, pocket_fingerprint(directory), files)
    digest = hashlib.sha256()
    for split in splits:
        for path in files[split]:
            digest.update(f"{split} {file_sha256(path)}\n".encode())
    return DataFiles(source, revision, digest.hexdigest(), files)


def resolve_files(task: TaskSettings, data: DataSettings) -> DataFiles:
    """Locate every file of `task.sources`: generated (`pocket`: directory/stem), pinned (`pinned`), below data.root (`directory`: directory/stem,
    in a format of `part_files.FORMATS`), or on the hub (`hub` and `files`, patterns of which the first match is used).

    Raises:
        QgoftError: a file is not available.
    """
    is_pocket = data.source == "pocket" and data.root is None
    files: dict[str, tuple[Path, ...]] = {}
    sums: dict[str, str] = {}
    origins: dict[str, str | None] = {}  # repository -> revision
    for part, source in task.sources.items():
        if is_pocket:
            if "pocket" not in source:
                continue
            name, stem = source["pocket"].split("/")
            directory = pocket_files(task.suite, name)
            files[part] = (directory / f"{stem}.parquet",)
            sums[part] = hashlib.sha256(f"{pocket_fingerprint(directory)} {stem}".encode()).hexdigest()
            continue
        if "pinned" in source:
            path = pinned_file(source["pinned"], data.root)
        elif "directory" not in source:
            continue
        elif data.root is not None:
            path = _part_in_directory(task, part, Path(data.root), source["directory"])
        else:
            path, origins[source["hub"]] = _part_on_hub(task, part, source, data)
        files[part], sums[part] = (path,), file_sha256(path)
    if is_pocket:
        return DataFiles("pocket", None, checksum(sums), files, sums)
    if data.root is not None:
        return DataFiles("directory", None, checksum(sums), files, sums)
    revisions = ", ".join(str(revision) for revision in origins.values()) or None
    return DataFiles(", ".join(origins) or "pinned files", revisions, checksum(sums), files, sums)


def _part_in_directory(task: TaskSettings, part: str, root: Path, place: str) -> Path:
    directory, stem = root / Path(place).parent, Path(place).name
    found = find_in_directory(directory, stem) or find_in_directory(root / task.suite / Path(place).parent, stem)
    if found is None:
        raise QgoftError(
            f"data.root={root} has no split {part} of {task.full_name}; expected <root>/{place} with one of the endings "
            f"{', '.join(FORMATS)} (docs/data.md gives the layout)"
        )
    return found


def _part_on_hub(task: TaskSettings, part: str, source: dict[str, Any], data: DataSettings) -> tuple[Path, str]:
    if not source.get("hub"):
        raise QgoftError(
            f"split {part} of {task.full_name} has no known hub repository; set data.root to a directory that contains {source['directory']} "
            "(docs/data.md gives the layout)"
        )
    snapshot = _download(source["hub"], "dataset", data.revision, source["files"])
    for pattern in source["files"]:
        found = sorted(snapshot.glob(pattern))
        if len(found) == 1:
            return found[0], snapshot.name
        if found:
            raise QgoftError(
                f"{source['hub']} at {snapshot.name} has {len(found)} files {pattern}, expected one; set data.root to a directory"
            )
    raise QgoftError(f"{source['hub']} at {snapshot.name} has none of {', '.join(source['files'])}; set data.root to a directory instead")


def _find_images(task: TaskSettings, data: DataSettings, splits: list[str]) -> DataFiles:
    """Return the images of a VTAB task in one of the layouts of `vtab/files.py`."""
    source, revision = "directory", None
    if task.path is not None:
        directory = Path(task.path)
        if not directory.is_dir():
            raise QgoftError(f"task.path={directory} is not a directory; expected the one with train800.txt or train.parquet")
    elif data.root is not None:
        directory = find_directory(task.config, Path(data.root))
    else:
        snapshot = _download_rows(task, data)
        archives = sorted(snapshot.glob("*.zip"))
        if not archives:
            raise QgoftError(f"{task.hub} at {snapshot.name} has no zip file; set data.root to a directory instead")
        directory, source, revision = find_directory(task.config, unpack(archives[0], snapshot.name)), str(task.hub), snapshot.name
    files = split_files(directory, splits)
    digest = hashlib.sha256()
    for split, (path,) in files.items():
        digest.update(f"{split} {list_checksum(path) if path.suffix == '.txt' else file_sha256(path)}\n".encode())
    return DataFiles(source, revision, digest.hexdigest(), files)


def _directory(task: TaskSettings, root: Path) -> Path:
    for directory in (root / task.suite / task.config, root / task.config):
        if directory.is_dir():
            return directory
    if list((root / task.suite).glob("*.parquet")):  # a suite with one task needs no directory for it
        return root / task.suite
    raise QgoftError(
        f"data.root={root} has no {task.suite}/{task.config} directory; expected <root>/{task.suite}/{task.config}/<split>.parquet "
        "(docs/data.md gives the layout)"
    )


def _split_files(directory: Path, split: str, task: TaskSettings) -> tuple[Path, ...]:
    found = sorted([*directory.glob(f"{split}.parquet"), *directory.glob(f"{split}-[0-9]*-of-*.parquet")])
    if not found:
        present = ", ".join(sorted(p.name for p in directory.glob("*.parquet"))) or "no parquet file"
        raise QgoftError(f"{task.full_name} needs split {split}, but {directory} has {present}; complete the data or set data.root")
    parts = [re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", path.name) for path in found]
    if len(found) == 1 and parts[0] is None:
        return tuple(found)
    count = int(parts[0].group(2)) if parts[0] else -1
    numbers = [int(part.group(1)) if part else -1 for part in parts]
    counts = {part.group(2) if part else None for part in parts}
    if numbers != list(range(count)) or len(counts) != 1:
        raise QgoftError(
            f"{task.full_name}, split {split}: {directory.name} holds {', '.join(path.name for path in found)}; needed is one {split}.parquet, or every "
            "part of one series; the download is incomplete or two copies are mixed"
        )
    return tuple(found)


def _download_rows(task: TaskSettings, data: DataSettings) -> Path:
    ((repository, patterns),) = repositories(task).items()
    return _download(repository, "dataset", data.revision, patterns)


def _download(repository: str, kind: str, revision: str, patterns: list[str]) -> Path:
    """Download a snapshot of a hub repository; its directory is named after the resolved revision."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    where = f"{kind} {repository} at revision {revision}"
    page = "/".join([constants.ENDPOINT, *(["datasets"] if kind == "dataset" else []), repository])
    try:
        for wait in (*RETRY_DELAYS, None):
            try:
                is_local = _hub_times_out(repository, kind, revision)
                options: Any = {"repo_type": kind, "revision": revision, "allow_patterns": patterns, "local_files_only": is_local}
                directory = huggingface_hub.snapshot_download(repository, **options)
                break
            except (OSError, errors.HfHubHTTPError) as error:
                if wait is None or not _is_transient(error):
                    raise
                print(f"qgoft: {where}: {redacted_message(error)}; retrying in {wait} s", file=sys.stderr, flush=True)
                time.sleep(wait)
    except errors.GatedRepoError as error:
        raise QgoftError(f"{where} is gated: accept its terms on {page}, then log in with `hf auth login` or set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise QgoftError(f"{where} does not exist or is private; check the name, log in, or set a local directory instead") from error
    except errors.RevisionNotFoundError as error:
        raise QgoftError(f"{where}: this revision does not exist; use main or a commit of that repository") from error
    except errors.LocalEntryNotFoundError as error:
        raise QgoftError(
            f"{where} is not in the cache and the hub is unreachable; run `{COMMAND} fetch` with a network connection, "
            "or set data.root / model.path to a local directory"
        ) from error
    except Exception as error:  # HTTP errors, and those of the client's transport, whose base class changes between its versions
        raise QgoftError(f"downloading {where} failed ({redacted_message(error)}); repeat the command to resume") from error
    return Path(directory)


def redacted_message(error: Exception) -> str:
    """Return type and text of a hub error, without the token, which a server may echo."""
    from huggingface_hub import get_token

    token, text = get_token(), format_exception(error)
    return text.replace(token, "[HF_TOKEN]") if token else text


def _hub_times_out(repository: str, kind: str, revision: str) -> bool:
    """Return True if the hub accepts the connection but never answers. huggingface_hub would wait forever, so the local cache is used."""
    try:
        _repo_info(repository, kind, revision)
    except Exception as error:  # any other error is reported by the download itself
        return "timeout" in type(error).__name__.lower()
    return False


def _repo_info(repository: str, kind: str, revision: str, *, files_metadata: bool = False) -> Any:
    """Request information about a repository, with a time limit."""
    from huggingface_hub import HfApi, constants

    limit = constants.HF_HUB_ETAG_TIMEOUT
    return HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=limit, files_metadata=files_metadata)


def _is_transient(error: Exception) -> bool:
    """Return True if a retry may help: the hub is busy, or a file arrived incomplete."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return status is not None and (status == 429 or status >= 500)
    return not isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) and getattr(error, "errno", None) is None


def remote_size(repository: str, kind: str, revision: str, patterns: Sequence[str], first_of: Sequence[Sequence[str]] = ()) -> int | None:
    """Return the size of a download in bytes (an upper bound), or None if the hub does not state it or is unreachable.

    Args:
        patterns: patterns of the downloaded files.
        first_of: groups of patterns, of which the first with a match counts too.
    """
    from huggingface_hub.utils import filter_repo_objects

    try:
        listed = _repo_info(repository, kind, revision, files_metadata=True).siblings or []
    except Exception:  # the download itself reports the problem
        return None
    sizes = {file.rfilename: file.size for file in listed}
    kinds = (list(filter_repo_objects(sizes, allow_patterns=list(group))) for group in first_of)
    names = {*filter_repo_objects(sizes, allow_patterns=list(patterns)), *next(filter(None, kinds), [])}
    wanted = [sizes[name] for name in names]
    known = [size for size in wanted if size is not None]
    return sum(known) if wanted and len(known) == len(wanted) else None


def resolve_model(model: ModelSettings) -> ModelFiles:
    """Locate the weights of a backbone; download them if necessary.

    Raises:
        QgoftError: they are not available; the message says what is missing and how to fix it.
    """
    if model.path is not None:
        directory, source, revision = Path(model.path), "directory", None
        if not (directory / "config.json").is_file():
            raise QgoftError(f"model.path={directory} has no config.json; expected a directory in the format of save_pretrained")
    elif model.source == "pocket":
        directory, source, revision = weights_directory(model.name), "pocket", None
    elif model.hub is not None:
        for patterns in WEIGHT_PATTERNS:
            directory = _download(model.hub, "model", model.revision, [*TOKENIZER_FILES, *patterns])
            if any(path for pattern in patterns for path in directory.glob(pattern)):
                break
        source, revision = model.hub, directory.name
    else:
        raise QgoftError(f"model {model.name} has neither a hub name nor a directory; set model.path")
    check_directory(directory)
    beside = None if source == "pocket" else list_sha256(directory, READ_BESIDE, among=None if source == "directory" else TOKENIZER_FILES)
    return ModelFiles(source, revision, weights_sha256(directory), directory, beside)
