"""An exported run is a plain directory: a process that never imports this package loads it and predicts the same."""

import gzip
import json
import shutil
import subprocess
import sys

import pytest

from qgoft.commands import convert
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.pocket.weights import weights_directory
from qgoft.records import read_record, write_record
from qgoft.train.export import export_run
from qgoft.train.run import run

READ = """
import json, sys
sys.modules["qgoft"] = None  # importing it would fail
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
directory, rows = sys.argv[1:]
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
table = load_dataset("parquet", data_files=rows, split="train")[:64]
batch = tokenizer(table["sentence1"], table["sentence2"], truncation=True, max_length=64, padding=True, return_tensors="pt")
print(json.dumps(model(**batch).logits.argmax(-1).tolist()))
"""


def train(root, *words):
    settings = compose_settings([f"results.root={root}", "task=glue/rte", "train.max_steps=8", "train.num_evals=1", *words])
    record = run(settings)
    return root / "runs" / record["key"], settings


@pytest.mark.parametrize("method", ["qgoft", "full"])
def test_export_predicts_without_qgoft(method, tmp_path):
    from qgoft.run_id import identify

    directory, settings = train(tmp_path, f"method={method}")
    assert convert.main(["export", str(directory), str(tmp_path / "plain")]) == 0
    with gzip.open(directory / "predictions.jsonl.gz", "rt") as file:
        recorded = [json.loads(line)["prediction"] for line in file][:64]
    (rows,) = identify(settings).data.files["test"]
    command = [sys.executable, "-c", READ, str(tmp_path / "plain"), str(rows)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()[-1])
    # Rounding may change an item whose two logits are nearly equal.
    assert sum(a != b for a, b in zip(found, recorded, strict=True)) <= 1


def test_export_missing_directories(tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        (["export", str(tmp_path / "runs" / "typo"), str(tmp_path / "plain")], ".*typo"),
        (["export", str(tmp_path), str(tmp_path / "file")], "file is a file; name a directory"),
        (["export", str(tmp_path), str(tmp_path / "plain")], r"has no record.json; expected the directory of a finished run"),
    ):
        with pytest.raises(QgoftError, match=message):
            convert.main(words)


def test_export_unsupported_runs(tmp_path):
    directory, _ = train(tmp_path / "h", "method=h_adapter")
    with pytest.raises(QgoftError, match=r"cannot be merged.*not linear"):
        export_run(directory, tmp_path / "plain")
    directory, _ = train(tmp_path / "r", "method=lora", "model=pocket_deberta_random")
    with pytest.raises(QgoftError, match="random weights, which are not saved"):
        export_run(directory, tmp_path / "plain")
    directory, _ = train(tmp_path / "p", "method=lora", f"model.path={weights_directory('pocket-deberta')}")
    with pytest.raises(QgoftError, match="name it with --model"):
        export_run(directory, tmp_path / "plain")
    with pytest.raises(QgoftError, match=r"the weights here have checksum .* name the right one with --model"):
        export_run(directory, tmp_path / "plain", str(weights_directory("pocket-vit")))
    shutil.copytree(weights_directory("pocket-deberta"), tmp_path / "other")
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"note": "another", ', 1))
    with pytest.raises(QgoftError, match="the tokenizer and configuration here have checksum"):
        export_run(directory, tmp_path / "plain", str(tmp_path / "other"))
    export_run(directory, tmp_path / "plain", str(weights_directory("pocket-deberta")))
    with pytest.raises(QgoftError, match="is not empty"):
        convert.main(["export", str(directory), str(tmp_path / "plain")])
    write_record(directory, {**read_record(directory / "record.json"), "status": "failed", "reason": "a test"})
    with pytest.raises(QgoftError, match="is failed"):
        export_run(directory, tmp_path / "other")
