"""Prompts, and the start of the answer."""

import json

import pytest

from qgoft.errors import QgoftError
from qgoft.models import load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.tasks.decoder.prompts import CUT, EMPTY, NO_ROOM, encode_pair, read_template


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(weights_directory("pocket-llama"))


def test_prompt_with_and_without_input(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps({"prompt_input": "I: {instruction}\nX: {input}\nR:", "prompt_no_input": "I: {instruction}\nR:"}))
    template = read_template(path)
    assert template.prompt("do {this}", "{input} too") == "I: do {this}\nX: {input} too\nR:"
    assert template.prompt("{input}") == "I: {input}\nR:"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not a prompt template"),
        ('{"prompt_input": "x"}', "not a prompt template"),
        ('{"prompt_input": "{instruction}", "prompt_no_input": "{instruction}"}', "needs"),
        ('{"prompt_input": "{instruction}{input}", "prompt_no_input": "none"}', "each once"),
    ],
)
def test_prompt_template_invalid(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(QgoftError, match=message):
        read_template(tmp_path / "t.json")


def test_answer_starts_after_the_prompt(tokenizer):
    ids, prompt, damage = encode_pair("[INST] what is 1 + 1 ? [RESP] ", "1 + 1 = 2 .", tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(ids[:prompt]) == "<s> [INST] what is 1 + 1 ? [RESP]".split()
    assert tokenizer.convert_ids_to_tokens(ids[prompt:]) == "1 + 1 = 2 . </s>".split()
    assert damage == ""


def test_token_across_the_boundary_is_prompt(tokenizer):
    """Without a space between them, the last word of the prompt and the first of the answer are one token."""
    ids, prompt, _ = encode_pair("[INST] a [RESP] do", "g cat", tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(ids[prompt:]) == ["cat", "</s>"]


@pytest.mark.parametrize(
    ("answer", "length", "kept", "damage"), [("1 2 3 4", 8, 8, CUT), ("1 2 3 4", 4, 4, NO_ROOM), ("", 64, 6, EMPTY), (" ", 64, 6, EMPTY)]
)
def test_prompt_file_damaged(tokenizer, answer, length, kept, damage):
    ids, prompt, found = encode_pair("[INST] a b [RESP] ", answer, tokenizer, length)
    assert (len(ids), found) == (kept, damage)
    assert prompt <= len(ids)
