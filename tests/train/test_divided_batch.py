"""However a step's rows are divided - all at once, over several passes, over two processes - the training is the same one."""

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
# Not SQuAD: the loss of the libraries' head is over all positions of a batch, padding too, so it depends on the longest of its rows.
CASES = [
    ("task=glue/rte", "method=qgoft"),
    ("task=glue/stsb", "method=full"),
    ("task=vtab/dtd", "method=lora"),
    # Answers of different lengths: a mean of means over two parts would give the words of the shorter ones more.
    ("task=math/gsm8k", "method=qgoft", "task.options.new_tokens=2"),
]


def worker(rank, port, words):
    join_run(rank, port)
    run(compose_settings(words))
    torch.distributed.barrier()
    os._exit(0)  # without destructors, see test_parallel_and_compiled.py


def trained(root):
    """Loss and norm of every step, and the weights."""
    (folder,) = (root / "runs").iterdir()
    steps = [line for line in map(json.loads, (folder / "history.jsonl").read_text().splitlines()) if "loss" in line]
    (weights,) = (folder / "adapter").glob("*.safetensors")
    return [(step["loss"], step["norm"]) for step in steps], load_file(weights)


def assert_alike(one, other):
    assert len(one[0]) == len(other[0]) > 2
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    for name, tensor in one[1].items():
        # AdamW makes steps of like size of gradients that are nearly nothing: there the last bits of a gradient are seen.
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=3e-5)


@pytest.mark.parametrize("words", CASES, ids=lambda words: words[0].removeprefix("task="))
def test_two_passes_train_like_one(tmp_path, words):
    run(compose_settings([f"results.root={tmp_path}/one", *WORDS, *words]))
    run(compose_settings([f"results.root={tmp_path}/two", *WORDS, *words, "train.batch_size=16", "train.gradient_accumulation_steps=2"]))
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "two"))


def test_an_epoch_that_ends_within_a_step(tmp_path):
    """1000 rows: two steps of 384, and one of 232 in passes of 128 and 104."""
    words = ["task=glue/rte", "method=qgoft", "selection=last", "train.epochs=1", "train.max_steps=null"]
    run(compose_settings([f"results.root={tmp_path}/one", *words, "train.batch_size=384"]))
    run(compose_settings([f"results.root={tmp_path}/three", *words, "train.batch_size=128", "train.gradient_accumulation_steps=3"]))
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "three"))


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Of rows with one label each: tests/train/test_run.py, by torchrun."""
    words = CASES[3]
    run(compose_settings([f"results.root={tmp_path}/one", *WORDS, *words]))
    run_in_two(worker, [f"results.root={tmp_path}/two", *WORDS, *words])
    assert_alike(trained(tmp_path / "one"), trained(tmp_path / "two"))


def test_what_a_mean_loss_is_over(tmp_path):
    """The model's own loss times this count is the sum over the rows, or over the words."""
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
