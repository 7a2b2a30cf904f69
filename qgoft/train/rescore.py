"""Evaluation of a finished run from its saved adapter, unmerged or merged."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qgoft.config.settings import RunSettings, settings_from_record
from qgoft.errors import QgoftError
from qgoft.methods import merge_and_unload
from qgoft.records import Record
from qgoft.run_id import RunId, identify
from qgoft.tasks.evaluate import Metric
from qgoft.train.adapter_files import check_adapter, check_base, load_adapter
from qgoft.train.distributed import place
from qgoft.train.record import RunContext
from qgoft.train.run import predict_test_sets, prepare
from qgoft.train.shared_training import as_recorded, read_run

# Largest difference between a score and that of the record by rounding, besides points of a percentage: nats per token, points of a rating.
TOLERANCES = {"loss": 0.002, "score": 0.1}


def tolerance(metric: str, *, least: float = 0.2) -> float:
    """Return the largest difference by rounding, which may flip items whose logits are equal to seven digits.

    Args:
        least: of a metric in percent.
    """
    return TOLERANCES.get(metric, least)


@dataclass(frozen=True)
class Sources:
    """Directories of rows and weights that did not come from the hub; a record holds no paths.

    Attributes:
        model_path: of the base model.
        data_root: of the rows.
        task_path: of the images of one task, if the run set task.path.
    """

    model_path: str | None = None
    data_root: str | None = None
    task_path: str | None = None


@dataclass(frozen=True)
class OpenedRun:
    """A finished run with its settings and the rows and weights that it used."""

    directory: Path
    record: Record
    settings: RunSettings
    run_id: RunId


def open_run(directory: Path, sources: Sources) -> OpenedRun:
    """Locate the rows and weights of a finished run.

    Raises:
        QgoftError: the run is not finished, or rows or weights are missing or differ from those of the record.
    """
    record = read_run(directory)
    if record["status"] != "done":
        raise QgoftError(f"the run in {directory} is {record['status']} ({record['reason']}); only a finished run has a trained adapter")
    settings = as_recorded(settings_from_record(record), record)
    for what, named, given, flag in (
        ("weights", settings.model.path, sources.model_path, "--model-path"),
        ("rows", settings.data.root, sources.data_root, "--data-root"),
        ("rows", settings.task.path, sources.task_path, "--task-path"),
    ):
        if named is not None and given is None:
            raise QgoftError(f"the run in {directory} had its {what} from a directory; name it with {flag}")
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, path=sources.model_path),
        data=dataclasses.replace(settings.data, root=sources.data_root),
        task=dataclasses.replace(settings.task, path=sources.task_path),
    )
    run_id = identify(settings)
    check_base(record, run_id.model, "name the right one with --model-path")
    here, there = run_id.data.fingerprint, record["provenance"]["data"]["fingerprint"]
    if here != there:
        raise QgoftError(
            f"the rows here have checksum {here[:12]}, those of the run {there[:12]}; name the original rows with --data-root or --task-path"
        )
    return OpenedRun(directory, record, settings, run_id)


@contextmanager
def load_run(run: OpenedRun) -> Iterator[RunContext]:
    """Yield rows, model and trained adapter of a finished run.

    Raises:
        QgoftError: the adapter is missing or was changed.
    """
    # A decoder writes to a temporary directory, so that answers and judgments of the run are unchanged.
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(run.settings, dataclasses.replace(run.run_id, directory=Path(scratch)))
        check_adapter(run.record, run.directory)
        load_adapter(prepared.adapted, run.directory / "adapter")
        yield prepared


def rescore(
    directory: Path,
    *,
    merge: bool,
    model_path: str | None = None,
    data_root: str | None = None,
    task_path: str | None = None,
    ask_judge: bool = False,
) -> tuple[Record, dict[str, Metric]]:
    """Return the record of a finished run, and its metrics evaluated again.

    Args:
        merge: merge the adapter into the weights first.
        model_path, data_root, task_path: see `Sources`.
        ask_judge: allow requests to a judge behind an endpoint for all ratings.

    Raises:
        QgoftError: see `open_run`; the adapter is missing or was changed; or the judge would be asked.
    """
    run = open_run(directory, Sources(model_path, data_root, task_path))
    settings = run.settings
    if settings.judge.kind == "openai" and not ask_judge:
        raise QgoftError(
            f"scoring this run again asks the judge ({settings.judge.model}) for every rating again; add --ask-judge to confirm"
        )
    with load_run(run) as prepared:
        if merge:
            prepared.adapted.model = merge_and_unload(prepared.adapted)
        place(prepared.adapted.model, prepared.accelerator)
        return run.record, prepared.suite.compute_metrics(predict_test_sets(prepared))
