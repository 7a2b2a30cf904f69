"""The generated rows as parquet files, made once per version of the generator and kept in the user's cache."""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from qgoft.errors import QgoftError

GENERATOR = Path(__file__).parent / "language"
FINGERPRINT = "fingerprint.txt"


def cache_folder() -> Path:
    """QGOFT_CACHE, else the user's cache folder."""
    named = os.environ.get("QGOFT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qgoft"


@functools.cache
def generator_version() -> str:
    """Changes with any change of the generator's source, so that a stale cache is never read."""
    digest = hashlib.sha256()
    for path in sorted(GENERATOR.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def pocket_files(suite: str, task: str) -> Path:
    """Folder with one parquet file per split and the checksum of the rows.

    Raises:
        QgoftError: the suite has no embedded twin, or the cache cannot be written.
    """
    if suite not in WRITERS:
        raise QgoftError(f"suite {suite} has no embedded twin; choose another PROTOCOL, or set data.root")
    folder = cache_folder() / f"pocket-{generator_version()}" / suite / task
    if (folder / FINGERPRINT).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=task + "."))
        WRITERS[suite](task, part)
        try:
            part.rename(folder)
        except OSError:  # another process was first, with the same rows
            shutil.rmtree(part)
    except OSError as error:
        raise QgoftError(
            f"cannot write the generated rows to {folder}: {error.strerror}; set QGOFT_CACHE to a folder with free space"
        ) from error
    return folder


def _write_glue(task: str, folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    from qgoft.pocket.language.tasks import generate

    disable_progress_bars()
    names = {
        "mnli": ["entailment", "neutral", "contradiction"],
        "sst2": ["negative", "positive"],
        "cola": ["unacceptable", "acceptable"],
        "qqp": ["not_duplicate", "duplicate"],
        "qnli": ["entailment", "not_entailment"],
        "rte": ["entailment", "not_entailment"],
        "mrpc": ["not_equivalent", "equivalent"],
    }
    label = ClassLabel(names=names[task]) if task in names else Value("float32")
    splits = generate(task)
    for split, rows in splits.items():
        texts = [name for name, value in rows[0].items() if isinstance(value, str)]
        features = Features({**{name: Value("string") for name in texts}, "label": label, "idx": Value("int32")})
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    _write_fingerprint(splits, folder)


def _write_squad(task: str, folder: Path) -> None:
    from datasets import Dataset, Features, List, Value, disable_progress_bars

    from qgoft.pocket.language.reading import generate_reading

    disable_progress_bars()
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    features = Features({**{name: Value("string") for name in ("id", "title", "context", "question")}, "answers": answers})
    splits = generate_reading()
    for split, rows in splits.items():
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    _write_fingerprint(splits, folder)


WRITERS = {"glue": _write_glue, "squad": _write_squad}


def _write_fingerprint(splits: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    content = json.dumps(splits, sort_keys=True).encode()
    (folder / FINGERPRINT).write_text(hashlib.sha256(content).hexdigest() + "\n")


def pocket_fingerprint(folder: Path) -> str:
    """Checksum of the rows themselves, so that it does not depend on how parquet lays them out."""
    return (folder / FINGERPRINT).read_text().strip()
