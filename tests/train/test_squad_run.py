"""SQuAD runs: the record, the reloaded adapter, other encoders, and damaged rows."""

import gzip
import json

import pytest
from datasets import Dataset
from transformers import BertConfig, BertModel

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models import load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.run_id import identify
from qgoft.tasks.squad.scoring import exact_match_and_f1
from qgoft.train.rescore import rescore
from qgoft.train.run import run

SHORT = ["task=squad/v1", "train.max_steps=12", "train.num_evals=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    s = compose_settings([*SHORT, f"results.root={tmp_path_factory.mktemp('squad')}"])
    return run(s), identify(s).directory


def test_squad_record_and_predictions(done):
    record, directory = done
    assert record["status"] == "done"
    assert record["primary"] == "f1"
    assert set(record["metrics"]) == {"exact_match", "f1"}
    assert record["metrics"]["f1"]["n"] == 2000
    assert 0 < record["metrics"]["f1"]["standard_error"] < 2
    assert record["metrics"]["f1"]["majority_baseline"] is None
    assert record["params"]["trainable"] == 10296
    assert record["params"]["head"] == 96 * 2 + 2
    assert record["provenance"]["data"]["rows"] == {"train": 1000, "validation": 500, "test": 2000}
    assert "repairs" not in record["provenance"]["data"]
    with gzip.open(directory / "predictions.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    found = exact_match_and_f1({line["idx"]: line["prediction"] for line in lines}, {line["idx"]: line["label"] for line in lines})
    assert found["f1"] == pytest.approx(record["metrics"]["f1"]["value"])
    assert found["n"] == 2000


def test_squad_adapter_reproduces_the_score(done):
    record, directory = done
    for merge, within in ((False, 1e-9), (True, 0.1)):
        _, measured = rescore(directory, merge=merge)
        for name, metric in measured.items():
            assert metric.value == pytest.approx(record["metrics"][name]["value"], abs=within)


@pytest.fixture
def bert(tmp_path):
    """Another encoder, with token types, which SQuAD's pairs use."""
    directory = tmp_path / "bert"
    tokenizer = load_tokenizer(weights_directory("pocket-deberta"))
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def made_up(count, *, wrong=0):
    rows = []
    for i in range(count):
        context = "the dog saw the cat . the bird heard the horse ."
        rows.append(
            {
                "id": f"q{i}",
                "title": "t",
                "context": context,
                "question": "what did the dog see ?",
                "answers": {"text": ["a tree" if i < wrong else "the cat"], "answer_start": [12]},
            }
        )
    return Dataset.from_list(rows)


def test_squad_directory_with_damaged_rows(tmp_path, bert):
    directory = tmp_path / "data" / "squad"
    directory.mkdir(parents=True)
    made_up(64, wrong=3).to_parquet(directory / "train.parquet")
    made_up(20).to_parquet(directory / "validation.parquet")
    words = ["protocol=small", "method=qgoft", "task=squad/v1", f"model.path={bert}", f"data.root={tmp_path / 'data'}"]
    s = compose_settings([*words, "train.max_steps=3", "train.max_length=64", "task.options.stride=16", f"results.root={tmp_path}"])
    record = run(s)
    assert record["status"] == "done"
    data = record["provenance"]["data"]
    assert data["subset"]
    assert data["data_fixes"].pop("questions of validation that are in train") > 0
    assert data["data_fixes"] == {"training answers that are not in their passage (target: none)": 3}
    assert record["metrics"]["f1"]["n"] == 20
    assert record["settings"]["eval_scheme"] == "validation"


def test_squad_tokenizer_without_offsets(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    with pytest.raises(QgoftError, match=r"tokenizer\.json"):
        run(compose_settings([*SHORT, f"results.root={tmp_path}", "train.max_length=60"]))
