"""Evaluation of a finished run from its saved adapter, unmerged or merged."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from qgoft.config.settings import settings_from_record
from qgoft.errors import QgoftError
from qgoft.methods import merge_and_unload
from qgoft.run_id import identify
from qgoft.tasks.evaluate import Metric
from qgoft.train.adapter_files import check_adapter, check_base, load_adapter
from qgoft.train.distributed import place
from qgoft.train.run import predict_test_sets, prepare
from qgoft.train.shared_training import as_recorded, read_run


def rescore(
    directory: Path,
    *,
    merge: bool,
    model_path: str | None = None,
    data_root: str | None = None,
    task_path: str | None = None,
    ask_judge: bool = False,
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Return the record of a run, and its metrics evaluated again.

    Args:
        merge: merge the adapter into the weights first.
        model_path, data_root, task_path: directories, if the run did not use the hub; a record holds no paths.
        ask_judge: allow requests to a judge behind an endpoint for all ratings.

    Raises:
        QgoftError: there is no finished run, or rows or weights differ from those of the record.
    """
    record = read_run(directory)
    if record["status"] != "done":
        raise QgoftError(f"the run in {directory} is {record['status']} ({record['reason']}); only a finished run can be scored again")
    settings = as_recorded(settings_from_record(record), record)
    if settings.judge.kind == "openai" and not ask_judge:
        raise QgoftError(
            f"scoring this run again asks the judge ({settings.judge.model}) for every rating again; add --ask-judge to confirm"
        )
    for what, named, given, flag in (
        ("weights", settings.model.path, model_path, "--model-path"),
        ("rows", settings.data.root, data_root, "--data-root"),
        ("rows", settings.task.path, task_path, "--task-path"),
    ):
        if named is not None and given is None:
            raise QgoftError(f"the run in {directory} had its {what} from a directory; name it with {flag}")
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, path=model_path),
        data=dataclasses.replace(settings.data, root=data_root),
        task=dataclasses.replace(settings.task, path=task_path),
    )
    run_id = identify(settings)
    check_base(record, run_id.model, "name the right one with --model-path")
    here, there = run_id.data.fingerprint, record["provenance"]["data"]["fingerprint"]
    if here != there:
        raise QgoftError(
            f"the rows here have checksum {here[:12]}, those of the run {there[:12]}; name the original rows with --data-root or --task-path"
        )
    # A decoder writes to a temporary directory, so that answers and judgments of the run are unchanged.
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(settings, dataclasses.replace(run_id, directory=Path(scratch)))
        check_adapter(record, directory)
        load_adapter(prepared.adapted, directory / "adapter")
        if merge:
            prepared.adapted.model = merge_and_unload(prepared.adapted)
        place(prepared.adapted.model, prepared.accelerator)
        return record, prepared.suite.compute_metrics(predict_test_sets(prepared))
