"""Keys of planned runs: their rows and weights are located, and generated if necessary."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from qgoft.errors import QgoftError
from qgoft.pocket.data import is_generated, pocket_files
from qgoft.run_id import RunId, identify, rekey
from qgoft.sweep.planned_run import PlannedRun, start_pool
from qgoft.tasks.sources import resolve_data, resolve_model, split_names


def generate(planned: Iterable[PlannedRun], jobs: int) -> None:
    """Generate missing embedded rows in parallel: VTAB's twenty tasks would take half a minute in turn."""
    # Decoders' rows are generated in a moment, and several tasks share them.
    tasks = {
        (run.settings.task.suite, run.settings.task.name)
        for run in planned
        if run.settings.data.source == "pocket" and not run.settings.task.sources
    }
    missing = sorted(task for task in tasks if not is_generated(*task))
    if len(missing) > 1 and jobs > 1:
        with start_pool(min(jobs, len(missing))) as pool:
            list(pool.map(pocket_files, *zip(*missing, strict=True)))


def identify_all(
    planned: Sequence[PlannedRun], processes: int, problems: dict[str, QgoftError] | None = None
) -> tuple[list[PlannedRun], list[RunId]]:
    """Return the runs with their keys. All runs on the same rows and weights share one lookup.

    Args:
        problems: if given, runs without rows or weights are left out and their errors collected: `math/math with llama-3.2-3b` -> error.
    """
    located: dict[tuple[Any, ...], RunId] = {}
    # The seeds of a run share these objects, and all methods of a task their content.
    contents: dict[tuple[int, ...], str] = {}
    keyed, run_ids = [], []
    for run in planned:
        s = run.settings
        objects = (id(s.task), id(s.data), id(s.model))
        if objects not in contents:
            contents[objects] = repr((s.task, s.data, s.model))
        place = (contents[objects], s.eval_scheme, s.results.root)
        known = located.get(place)
        if known is None:
            name = f"{s.task.full_name} with {s.model.name}"
            if problems is not None and name in problems:
                continue
            try:
                known = located[place] = identify(s, processes=processes)
            except QgoftError as error:
                if problems is None:
                    raise
                problems[name] = error
                continue
        run_id = rekey(known, s, processes=processes)
        keyed.append(dataclasses.replace(run, key=run_id.key))
        run_ids.append(run_id)
    return keyed, run_ids


def resolve_named_paths(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs with the checksums of rows and weights in directories of the command line, without downloading or generating.

    Raises:
        QgoftError: a directory does not hold the expected files.
    """
    rows: dict[str, str] = {}
    weights: dict[str, str] = {}
    resolved = []
    for run in planned:
        s = run.settings
        place, model = repr((s.task, s.data, s.eval_scheme)), repr(s.model)
        if (s.data.root is not None or s.task.path is not None) and place not in rows:
            rows[place] = resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme)).fingerprint
        if s.model.path is not None and model not in weights:
            weights[model] = resolve_model(s.model).sha256
        resolved.append(dataclasses.replace(run, data=rows.get(place), weights=weights.get(model)))
    return resolved
