"""Export of a finished run as a plain model directory of transformers, readable without this package."""

import dataclasses
import shutil
from pathlib import Path

from qgoft.config.settings import settings_from_record
from qgoft.errors import QgoftError
from qgoft.methods import apply_method, merge_and_unload
from qgoft.tasks.registry import suite_class
from qgoft.tasks.sources import resolve_model
from qgoft.train.adapter_files import check_adapter, check_base, load_adapter
from qgoft.train.shared_training import as_recorded, read_run

# Files of a model directory that convert text or images to inputs, or configure generation.
KEPT = ("token", "vocab", "merges", "spm", "special_tokens", "preprocessor", "processor", "generation_config", "chat_template")


def export_run(run: Path, target: Path, model_path: str | None = None) -> None:
    """Merge the adapter of a run into its base model, and write that with head and tokenizer to `target`.

    Args:
        model_path: directory of the base model, if the run had its weights from a directory.

    Raises:
        QgoftError: the run is not done, its base model is missing or differs, or its method cannot be merged.
    """
    record = read_run(run)
    if record["status"] != "done":
        raise QgoftError(f"{run} is {record['status']}; only a finished run has weights to export")
    settings = as_recorded(settings_from_record(record), record)
    if settings.model.init == "random":
        raise QgoftError(f"{run} started from random weights, which are not saved")
    if settings.model.path and model_path is None:
        raise QgoftError(f"{run} had the weights of {record['model']} from a directory; name it with --model")
    base = resolve_model(dataclasses.replace(settings.model, path=model_path))
    check_base(record, base, "name the right one with --model")
    suite = suite_class(settings)
    model = suite.build_model(settings, base.directory)
    adapted = apply_method(model, suite.model_settings(settings), settings.method, total_steps=record["cost"]["steps"])
    check_adapter(record, run)
    load_adapter(adapted, run / "adapter")
    plain = merge_and_unload(adapted)
    target.mkdir(parents=True, exist_ok=True)
    plain.save_pretrained(target)
    for path in sorted(base.directory.iterdir()):
        if path.is_file() and any(part in path.name for part in KEPT):
            shutil.copyfile(path, target / path.name)
