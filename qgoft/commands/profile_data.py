"""Measure data loading next to training: windows of SQuAD per second, and images decoded per second next to a step of the ViT.

    python -m qgoft profile-data squad protocol=small model.path=<directory of MiniLM-L6> data.root=<directory>
    python -m qgoft profile-data vtab/caltech101 protocol=goft_icml24 model.path=<directory of a ViT> data.root=<directory>
    python -m qgoft profile-data squad                   embedded data and model

Prints one line of JSON. Nothing is cached.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

from qgoft.config.compose import compose_settings

LEAST_WINDOWS, LEAST_SECONDS = 10_000, 5.0


def profile_windows(words: list[str]) -> dict[str, Any]:
    """Return the seconds for LEAST_WINDOWS training windows, from text to rows on disk; rows are repeated if there are too few."""
    from qgoft.models import load_tokenizer
    from qgoft.run_id import identify
    from qgoft.tasks.model_files import tokenizer_sha256
    from qgoft.tasks.squad.data import load_splits

    settings = compose_settings(["task=squad/v1", *words])
    run_id = identify(settings)
    tokenizer = load_tokenizer(run_id.model.directory)
    windows, seconds = 0, 0.0
    while windows < LEAST_WINDOWS:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["QGOFT_CACHE"] = cache
            start = time.perf_counter()
            parts = load_splits(settings, run_id.data, tokenizer, tokenizer_sha256(run_id.model.directory))
            seconds += time.perf_counter() - start
            windows += len(parts.train) + sum(map(len, parts.windows.values()))
    return {"windows": windows, "seconds": round(seconds, 2), "seconds_per_10000": round(10_000 * seconds / windows, 2)}


def profile_pictures(task: str, words: list[str]) -> dict[str, Any]:
    """Return the seconds per image: decoded from its file, read from the cache, and in a training step of the model."""
    from qgoft.run_id import identify
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.run import prepare, train_loader

    quiet_libraries()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["QGOFT_CACHE"] = cache
        settings = compose_settings([f"task={task}", *words])
        prepared = prepare(settings, identify(settings))
        suite: Any = prepared.suite
        reported = suite.eval_sets["test:"]
        decoding = per_item(lambda i: reported[i % len(reported)], 1)
        batches = iter_forever(train_loader(prepared))
        size = settings.train.batch_size
        reading = per_item(lambda _: next(batches), size)
        model, batch = prepared.adapted.model.train(), next(batches)

        def step(_: int) -> None:
            model(**batch).loss.backward()
            model.zero_grad()

        training = per_item(step, size)
    names = ("decoding", "reading decoded", "training step", "decoding / training step")
    return dict(zip(names, (decoding, reading, training, decoding / training), strict=True))


def per_item(work: Any, items: int) -> float:
    """Return the seconds per item, from calls for LEAST_SECONDS after a first one."""
    work(0)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < LEAST_SECONDS:
        count += 1
        work(count)
    return (time.perf_counter() - start) / count / items


def iter_forever(loader: Any) -> Any:
    while True:
        yield from loader


def main(argv: list[str]) -> int:
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    what, *overrides = argv
    print(json.dumps(profile_windows(overrides) if what == "squad" else profile_pictures(what, overrides)))
    return 0
