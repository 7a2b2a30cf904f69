"""A step's rows in one batch, over several micro-batches, or over two processes: the training is the same."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from qgoft.config.compose import compose_settings
from qgoft.run_id import identify
from qgoft.train.loop import count_items
from qgoft.train.run import prepare, run, train_loader
from tests._processes import join_run, run_in_two

WORDS = ["train.max_steps=6", "train.num_evals=1", "selection=last"]
# Not SQuAD: the loss of the library's head covers all positions of a batch with padding, so it depends on the longest row.
CASES = [
    ("task=glue/rte", "method=qgoft"),
    ("task=glue/stsb", "method=full"),
    ("task=vtab/dtd", "method=lora"),
    # Answers of different lengths: a mean of the means of two micro-batches would overweight the tokens of shorter ones.
    ("task=math/gsm8k", "method=qgoft", "task.options.new_tokens=2"),
]


def worker(rank, port, words):
    join_run(rank, port)
    run(compose_settings(words))
    torch.distributed.barrier()
    os._exit(0)  # without destructors, see test_parallel_and_compiled.py


def trained(root):
    """Return loss and norm of every step, and the weights."""
    (directory,) = (root / "runs").iterdir()
    steps = [line for line in map(json.loads, (directory / "history.jsonl").read_text().splitlines()) if "loss" in line]
    (weights,) = (directory / "adapter").glob("*.safetensors")
    return [(step["loss"], step["norm"]) for step in steps], load_file(weights)


def assert_alike(one, other):
    assert len(one[0]) == len(other[0]) > 2
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    for name, tensor in one[1].items():
        # AdamW makes equally large steps for tiny gradients, so the last bits of a gradient are visible there.
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=3e-5)


@pytest.mark.parametrize("words", CASES, ids=lambda words: words[0].removeprefix("task="))
def test_accumulation_equals_one_batch(tmp_path, words):
    run(compose_settings([f"results.root={tmp_path}/one", *WORDS, *words]))
    run(compose_settings([f"results.root={tmp_path}/two", *WORDS, *words, "train.batch_size=16", "train.gradient_accumulation_steps=2"]))
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "two"))


def test_accumulation_at_the_end_of_an_epoch(tmp_path):
    """1000 rows: two steps of 384, and one of 232 in micro-batches of 128 and 104."""
    words = ["task=glue/rte", "method=qgoft", "selection=last", "train.epochs=1", "train.max_steps=null"]
    run(compose_settings([f"results.root={tmp_path}/one", *words, "train.batch_size=384"]))
    run(compose_settings([f"results.root={tmp_path}/three", *words, "train.batch_size=128", "train.gradient_accumulation_steps=3"]))
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "three"))


@pytest.mark.slow
def test_two_processes_equal_one_batch(tmp_path):
    """Rows with one label each: tests/train/test_run.py, by torchrun."""
    words = CASES[3]
    run(compose_settings([f"results.root={tmp_path}/one", *WORDS, *words]))
    run_in_two(worker, [f"results.root={tmp_path}/two", *WORDS, *words])
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "two"))


def test_loss_is_averaged_over_tokens(tmp_path):
    """The model's loss times this count is the sum over the rows, or over the tokens."""
    for words in (*CASES, ("task=squad/v1", "method=lora")):
        settings = compose_settings([f"results.root={tmp_path}", *WORDS, *words])
        prepared = prepare(settings, identify(settings))
        batch = next(iter(train_loader(prepared)))
        one_by_one = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(8)]
        first = {name: tensor[:8] for name, tensor in batch.items()}
        model = prepared.adapted.model.eval()
        with torch.no_grad():
            whole = model(**first).loss * count_items(first)
            parts = sum(model(**row).loss * count_items(row) for row in one_by_one)
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=0)
