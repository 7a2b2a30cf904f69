"""Scoring a finished run again from what it saved, unmerged or merged."""

import dataclasses
import tempfile
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file

from qgoft.errors import QgoftError
from qgoft.ledger import identify
from qgoft.records import read_record
from qgoft.settings import settings_from_record
from qgoft.train.evaluate import Measured
from qgoft.train.run import Prepared, prepare, report_parts


def rescore(
    folder: Path, *, merge: bool, model_path: str | None = None, data_root: str | None = None
) -> tuple[dict[str, Any], dict[str, Measured]]:
    """The record of a run folder, and its metrics measured anew.

    Args:
        merge: put the adapter into the weights first.
        model_path, data_root: directories, where the run did not use the hub; a record holds no paths.

    Raises:
        QgoftError: there is no finished run, or rows or weights are not those of the record.
    """
    if not (folder / "record.json").is_file():
        raise QgoftError(f"{folder} holds no record.json; give the folder of a finished run, results/runs/<key>")
    record = read_record(folder / "record.json")
    if record["status"] != "done":
        raise QgoftError(f"the run in {folder} is {record['status']} ({record['reason']}); only a finished run can be scored again")
    settings = settings_from_record(record)
    settings = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, path=model_path),
        data=dataclasses.replace(settings.data, root=data_root),
    )
    identity = identify(settings)
    for what, here, there in (
        ("weights", identity.model.sha256, record["provenance"]["model"]["sha256"]),
        ("rows", identity.data.fingerprint, record["provenance"]["data"]["fingerprint"]),
    ):
        if here != there:
            raise QgoftError(
                f"the {what} here have checksum {here[:12]}, those of the run {there[:12]}; an adapter belongs to its base and its data: "
                "name the right ones with --model-path and --data-root"
            )
    # What a decoder writes goes to a scratch folder: the answers and judgments of the run stay as they are.
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(settings, dataclasses.replace(identity, folder=Path(scratch)))
        _load_trained(prepared, folder / "adapter", merge=merge)
        return record, prepared.suite.measure(report_parts(prepared))


def _load_trained(prepared: Prepared, folder: Path, *, merge: bool) -> None:
    adapted = prepared.adapted
    if not adapted.is_peft:
        missing = adapted.model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
        if missing.unexpected_keys:
            raise QgoftError(f"{folder} holds {missing.unexpected_keys[0]}, which this model lacks; it belongs to another base")
        return
    base = prepared.suite.build_model(prepared.settings, prepared.identity.model.folder)
    try:
        with warnings.catch_warnings():
            # peft only warns when the file lacks weights, and would then score the base model.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, folder)
    except (RuntimeError, ValueError, OSError, UserWarning) as error:
        raise QgoftError(f"the adapter in {folder} does not fit this base model ({error}); name the base it was trained on") from error
    adapted.model = model.merge_and_unload() if merge else model
