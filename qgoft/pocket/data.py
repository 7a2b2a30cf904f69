"""Generated rows as parquet files, created once per version of the generator in the user's cache."""

import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qgoft.config.locations import cache_directory
from qgoft.config.suites import import_name, read_config, suite_info
from qgoft.errors import QgoftError
from qgoft.records import file_sha256

GENERATORS = [Path(__file__).parent / name for name in ("language", "vision")]
FINGERPRINT, CHECKSUMS = "fingerprint.txt", "sha256.json"


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield a new directory that becomes `directory` atomically at the end of the block, unless another process created it first. Nothing
    remains if the block fails. Permissions follow the user's umask, since a group may share a cache.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=directory.parent, prefix=directory.name + "."))
    try:
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)
        yield part
        try:
            part.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@functools.cache
def generator_version(generator: str = "") -> str:
    """Return a version that changes with the source of the generators, so that a stale cache is never read.

    Args:
        generator: dotted name of a function outside this package.
    """
    digest = hashlib.sha256()
    paths = sorted(path for directory in GENERATORS for path in directory.glob("*.py"))
    if generator and not generator.startswith("qgoft.pocket."):
        paths.append(Path(import_name(generator).__code__.co_filename))
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def is_generated(suite: str, task: str) -> bool:
    """Return True if the rows are in the cache, or the suite has no generated rows."""
    return suite_info(suite).generator is None or is_unchanged(_directory(suite, task))


def is_unchanged(directory: Path) -> bool:
    """Return True if a directory holds the generated files, byte for byte."""
    try:
        return json.loads((directory / CHECKSUMS).read_text()) == _checksums(directory)
    except (OSError, ValueError, RecursionError):
        return False


def _checksums(directory: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(directory.iterdir()) if path.name != CHECKSUMS and path.is_file()}


def pocket_files(suite: str, task: str) -> Path:
    """Return the directory with one parquet file per split, and the checksum of the rows.

    Raises:
        QgoftError: the suite has no synthetic task, or the cache cannot be written.
    """
    generator = suite_info(suite).generator
    if generator is None:
        raise QgoftError(f"suite {suite} has no embedded rows; choose another PROTOCOL, or set data.root")
    directory = _directory(suite, task)
    if is_generated(suite, task):
        return directory
    try:
        if directory.is_dir():
            if (directory / CHECKSUMS).is_file():  # written by this version
                print(f"qgoft: {directory} has other rows than were generated; generating them again", file=sys.stderr, flush=True)
            aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f"{directory.name}."))
            with suppress(FileNotFoundError):  # another process was first
                directory.rename(aside / directory.name)
            shutil.rmtree(aside, ignore_errors=True)
        with atomic_directory(directory) as part:
            import_name(generator)(task, part)
            (part / CHECKSUMS).write_text(json.dumps(_checksums(part), indent=1) + "\n")
    except OSError as error:
        raise QgoftError(
            f"cannot write the generated rows to {directory}: {error.strerror}; set QGOFT_CACHE to a directory with free space"
        ) from error
    return directory


def _directory(suite: str, task: str) -> Path:
    return cache_directory() / f"pocket-{generator_version(suite_info(suite).generator or '')}" / suite / task


def write_splits(splits: Mapping[str, list[dict[str, Any]]], directory: Path, features: Any = None) -> None:
    """Write generated rows as one parquet file per split, with their checksum.

    Args:
        features: types of the columns; None to infer them.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    for split, rows in splits.items():
        Dataset.from_list(rows, features=features).to_parquet(directory / f"{split}.parquet")
    content = json.dumps(splits, sort_keys=True).encode()
    (directory / FINGERPRINT).write_text(hashlib.sha256(content).hexdigest() + "\n")


def write_glue(task: str, directory: Path) -> None:
    """Write the rows of a synthetic GLUE task."""
    from datasets import ClassLabel, Features, Value

    from qgoft.pocket.language.tasks import generate

    # The hub's names of the classes; STS-B has none.
    names = read_config(f"task/glue/{task}")["labels"]
    splits = generate(task)
    texts = [name for name, value in next(iter(splits.values()))[0].items() if isinstance(value, str)]
    label = ClassLabel(names=names) if names else Value("float32")
    write_splits(splits, directory, Features({**{name: Value("string") for name in texts}, "label": label, "idx": Value("int32")}))


def write_squad(task: str, directory: Path) -> None:
    """Write the rows of synthetic SQuAD."""
    from datasets import Features, List, Value

    from qgoft.pocket.language.reading import generate_reading

    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    features = Features({**{name: Value("string") for name in ("id", "title", "context", "question")}, "answers": answers})
    write_splits(generate_reading(), directory, features)


def write_decoder(task: str, directory: Path) -> None:
    """Write the rows of a decoder task: instructions with the 80 questions, synthetic MMLU, arithmetic, or the eight choice tasks."""
    from qgoft.pocket.language.choices import generate_commonsense, generate_subjects
    from qgoft.pocket.language.instructions import generate_instructions, generate_questions
    from qgoft.pocket.language.problems import generate_problems

    generators: dict[str, Callable[[], dict[str, list[dict[str, Any]]]]] = {
        "alpaca": generate_instructions,
        "vicuna": lambda: {"question": generate_questions()},
        "mmlu": generate_subjects,
        "metamath": generate_problems,
        "mixture": generate_commonsense,
    }
    write_splits(generators[task](), directory)


def write_vtab(task: str, directory: Path) -> None:
    """Write the images in the layout of VTAB's parquet directories: train.parquet holds train800 and then val200."""
    import numpy as np

    splits = _digits() if task == "digits" else _drawn(task)
    train = tuple(np.concatenate(parts) for parts in zip(splits["train800"], splits["val200"], strict=True))
    digest = hashlib.sha256()
    for name, (images, labels) in (("train", train), ("test", splits["test"])):
        digest.update(f"{name} {images.shape}".encode() + images.tobytes() + np.asarray(labels, "<i8").tobytes())
        _write_pictures(images, labels, directory / f"{name}.parquet")
    (directory / FINGERPRINT).write_text(digest.hexdigest() + "\n")


def _drawn(task: str) -> dict[str, Any]:
    from qgoft.pocket.vision.tasks import SIZES, generate_pictures

    return {split: generate_pictures(task, split) for split in SIZES}


def _digits() -> dict[str, Any]:
    """Return scikit-learn's handwritten digits: 1797 real images, 8 x 8, grey from 0 to 16, in a permutation by seed 0."""
    import numpy as np
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.images))
    images, labels = (loaded.images[order] * 15).astype(np.uint8), loaded.target[order]
    parts = {"train800": slice(800), "val200": slice(800, 1000), "test": slice(1000, None)}
    return {split: (images[part], labels[part]) for split, part in parts.items()}


def _write_pictures(images: Any, labels: Any, path: Path) -> None:
    import io

    from datasets import Dataset, Features, Image, Value, disable_progress_bars
    from PIL import Image as Pillow

    disable_progress_bars()
    encoded = []
    for image in images:
        file = io.BytesIO()
        Pillow.fromarray(image).save(file, "png", compress_level=0)
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": encoded, "label": [int(label) for label in labels]}, features=features).to_parquet(path)


def pocket_fingerprint(directory: Path) -> str:
    """Return the checksum of the rows, independent of their encoding in parquet."""
    return (directory / FINGERPRINT).read_text().strip()
