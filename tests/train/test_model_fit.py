"""A model directory with inconsistent files is one line, and its decoding settings are not used."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models import check_fit, load_decoder, load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.run_id import identify
from qgoft.train.run import prepare, run


@pytest.fixture
def llama(tmp_path):
    return shutil.copytree(weights_directory("pocket-llama"), tmp_path / "llama")


def change(path, **values):
    content = json.loads(path.read_text()) if path.is_file() else {}
    content = {name: value for name, value in {**content, **values}.items() if value is not KeyError}
    path.write_text(json.dumps(content))


def settings(model, tmp_path, *words):
    return compose_settings(
        [
            "task=math/gsm8k",
            f"model.path={model}",
            f"results.root={tmp_path / 'results'}",
            "train.max_steps=2",
            "train.num_evals=1",
            *words,
        ]
    )


def test_tokenizer_empty_special_token(llama):
    change(llama / "tokenizer_config.json", bos_token="")
    with pytest.raises(QgoftError, match=r"tokenizer_config\.json: bos_token is empty"):
        load_tokenizer(llama)


def test_tokenizer_without_end_token(llama, tmp_path):
    change(llama / "tokenizer_config.json", eos_token=KeyError)
    s = settings(llama, tmp_path)
    with pytest.raises(QgoftError, match="has no eos_token, which is needed to end answers"):
        prepare(s, identify(s))


def test_vocabulary_exceeds_embedding(llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens([f"word{i}" for i in range(50)])
    tokenizer.save_pretrained(llama)
    s = settings(llama, tmp_path)
    with pytest.raises(QgoftError, match=r"the tokenizer of model=pocket-llama has .* tokens and its embedding .* rows"):
        prepare(s, identify(s))


def test_rows_exceed_positions():
    tokenizer = AutoTokenizer.from_pretrained(weights_directory("pocket-deberta"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    model = BertForSequenceClassification(config)
    check_fit(tokenizer, model, 32, "bert")
    with pytest.raises(QgoftError, match=r"train\.max_length=33: model=bert has 32 positions"):
        check_fit(tokenizer, model, 33, "bert")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=glue/rte", "model=pocket_llama"], "model=pocket-llama has no head for suite glue"),
        (
            ["task=math/gsm8k", "model=pocket_deberta"],
            "model=pocket-deberta is a deberta-v2, which has no CausalLM model, as suite math needs",
        ),
    ],
)
def test_model_of_another_kind(tmp_path, words, message):
    s = compose_settings([*words, f"results.root={tmp_path}"])
    with pytest.raises(QgoftError, match=message):
        prepare(s, identify(s))


def test_generation_config_has_no_effect(llama, tmp_path):
    """generation_config.json of a published model may request beams or penalties."""
    plain = run(settings(llama, tmp_path))
    change(
        llama / "generation_config.json",
        repetition_penalty=3.0,
        num_beams=3,
        no_repeat_ngram_size=2,
        min_new_tokens=5,
        suppress_tokens=[5, 6],
    )
    s = settings(llama, tmp_path)
    steered = run(s)
    assert steered["key"] != plain["key"], "another file beside the weights"
    assert steered["status"] == plain["status"] == "done"
    assert steered["metrics"] == plain["metrics"]
    torch.manual_seed(0)
    assert load_decoder(s, llama).generation_config.repetition_penalty in (None, 1.0)
