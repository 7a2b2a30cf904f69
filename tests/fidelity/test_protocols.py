"""Rows, images, prompts and steps of the protocols against the behaviour of the papers' scripts, written independently. Sources: PSOFT
783a5e2 and 820959e, MetaMath fe667b1, LLM-Adapters 8166572, LLaMA-Factory 73f40f1. docs/protocols.md names the place of each."""

import io
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.tasks.decoder.generate import cut_at
from qgoft.tasks.decoder.prompts import Template, prompt_rules
from qgoft.tasks.splits import holdout_split, split_in_half
from qgoft.tasks.vtab.images import PixelBatch, decode
from qgoft.train.optim import build_schedule, evaluation_steps

pytestmark = pytest.mark.fidelity
TEMPLATE = ("I {instruction} and {input}\n\n### Response:\n", "I {instruction}\n\n### Response:\n")


def settings(*words):
    return compose_settings(list(words))


@pytest.mark.parametrize("count", [408, 277])
@pytest.mark.parametrize("seed", [0, 3])
def test_psoft_halves_follow_the_seed(count, seed):
    """np.random.seed(seed); np.random.shuffle(arange(n)): the first floor(n / 2) are the validation split."""
    first, second = split_in_half(Dataset.from_dict({"row": list(range(count))}), seed)
    np.random.seed(seed)
    order = np.arange(count)
    np.random.shuffle(order)
    assert list(first["row"]) == order[: count // 2].tolist()
    assert list(second["row"]) == order[count // 2 :].tolist()
    assert settings("protocol=psoft_iclr26", "task=glue/mrpc", "method=psoft").eval_scheme == "seeded_halves"


def test_psoft_warmup_is_truncated():
    """int(total * 0.1) on GLUE and VTAB, rounded up by transformers' Trainer (mathematics)."""
    total, parameter = 5357, torch.nn.Parameter(torch.zeros(1))
    steps = {}
    for task in ("glue/cola", "vtab/dtd", "math/gsm8k"):
        optim = settings("protocol=psoft_iclr26", f"task={task}", "method=psoft").optim
        schedule = build_schedule(torch.optim.SGD([parameter], lr=1.0), optim, total)
        factors = [schedule.lr_lambdas[0](step) for step in range(600)]
        steps[task] = factors.index(max(factors))
    assert steps == {"glue/cola": 535, "vtab/dtd": 535, "math/gsm8k": math.ceil(535.7)}


def test_psoft_stsb_is_pearson():
    assert settings("protocol=psoft_iclr26", "task=glue/stsb", "method=psoft").task.primary == "pearson"
    assert settings("protocol=goft_icml24", "task=glue/stsb", "method=goft").task.primary == "pearson_spearman"


@pytest.mark.parametrize(
    ("protocol", "method", "resample", "mean", "deviation"),
    [
        ("psoft_iclr26", "psoft", Image.Resampling.BILINEAR, [0.5] * 3, [0.5] * 3),
        ("goft_icml24", "goft", Image.Resampling.BICUBIC, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_vtab_images(protocol, method, resample, mean, deviation):
    preset = settings(f"protocol={protocol}", "task=vtab/dtd", f"method={method}").task.options.get("image", "imagenet")
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    pixels, _ = decode(buffer.getvalue(), 32, preset)
    ours = PixelBatch(32, preset)([{"pixels": pixels.tobytes(), "labels": 0}])["pixel_values"][0]
    resized = torch.tensor(np.asarray(drawn.resize((32, 32), resample)) / 255).permute(2, 0, 1)
    expected = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["psoft", "lora", "dora", "pissa", "oft_v2", "boft", "lora_xs"])
def test_psoft_vtab_dropout_is_on_the_adapter(method):
    """Table 11's dropout of 0.1 is --peft_dropout."""
    s = settings("protocol=psoft_iclr26", "task=vtab/dtd", f"method={method}")
    assert (s.method.options["dropout"], s.train.hidden_dropout) == (0.1, None)


@pytest.mark.parametrize(("protocol", "scale"), [("psoft_iclr26", 1.0), ("goft_icml24", 2.0), ("pocket", 2.0)])
def test_lora_scale_by_protocol(protocol, scale):
    assert settings(f"protocol={protocol}", "task=glue/rte", "method=lora").method.options["scale"] == scale


def test_psoft_qgoft_without_penalty():
    s = settings("protocol=psoft_iclr26", "task=glue/rte", "method=qgoft_v2", "method.variant=qgoft_v2-lambda0")
    assert s.method.penalty == 0
    assert settings("protocol=psoft_iclr26", "task=glue/rte", "method=qgoft_v2").method.penalty == 0.05


def test_metamath_prompts():
    """No newline after "### Response:". In training, further lines of a query are its input; in tests the whole question is the
    instruction."""
    options = settings("protocol=psoft_iclr26", "task=math/math", "method=psoft").task.options
    template = Template(*TEMPLATE, prompt_rules(options))
    assert template.prompt("one") == "I one\n\n### Response:"
    assert template.prompt("one\ntwo\nthree") == "I one and two\nthree\n\n### Response:"
    assert template.test_prompt("one\ntwo") == "I one\ntwo\n\n### Response:"
    assert options["prompt_suffix"] == " Let's think step by step."
    assert options["new_tokens"] == 2048
    assert settings("protocol=psoft_iclr26", "task=math/gsm8k", "method=psoft").task.options["new_tokens"] == 512
    assert cut_at("so 3. The answer is: 3\nQuestion: next", tuple(options["stop"])) == "so 3. The answer is: 3\n"


def test_llama_factory_prompts():
    """An input follows its instruction on a new line, without a section of its own."""
    s = settings("protocol=goft_icml24", "task=instruct/vicuna", "method=goft")
    template = Template(*TEMPLATE, prompt_rules(s.task.options))
    assert template.prompt("one", "two") == "I one\ntwo\n\n### Response:\n"
    assert [s.task.options[name] for name in ("new_tokens", "temperature", "top_p", "top_k")] == [512, 0.95, 0.7, 50]
    assert (s.train.max_length, s.train.batch_size * s.train.gradient_accumulation_steps, s.train.group_by_length) == (1024, 128, False)


def test_prompt_rules_unknown_value():
    for rules, message in (
        ({"answer": 1}, "unknown task.options.train_prompt 'answer'"),
        ({"response": "x"}, "allowed are glued, newline"),
    ):
        with pytest.raises(QgoftError, match=message):
            prompt_rules({"train_prompt": rules})


def test_commonsense_training():
    """Loss on all tokens, 120 rows held out with seed 42, evaluated every 80 steps; the best loss is selected, except for BOFT."""
    s = settings("protocol=psoft_iclr26", "task=commonsense/boolq", "method=psoft")
    assert (s.train.loss_on, s.train.holdout_rows, s.train.eval_steps, s.selection) == ("all", 120, 80, "best_validation")
    assert (s.train.mixed_precision, s.train.group_by_length, s.task.options["num_beams"], s.task.options["new_tokens"]) == (
        "bf16",
        False,
        4,
        32,
    )
    assert settings("protocol=psoft_iclr26", "task=commonsense/boolq", "method=boft").selection == "last"
    assert evaluation_steps(s.train, 700, 234) == {80, 160, 240, 320, 400, 480, 560, 640}
    assert evaluation_steps(s.train, 60, 20) == {60}
    rows = Dataset.from_dict({"row": list(range(500))})
    train, held = holdout_split(rows, 120)
    expected = np.random.default_rng(42).permutation(500)
    assert list(held["row"]) == expected[:120].tolist()
    assert sorted([*train["row"], *held["row"]]) == list(range(500))


def test_vtab_supports_both_training_sets():
    """GOFT's G.2 trains on the 800, FacT's framework on all 1,000."""
    words = ["protocol=goft_icml24", "task=vtab/dtd", "method=goft"]
    assert settings(*words).eval_scheme == "whole"
    assert settings(*words, "eval_scheme=train800").eval_scheme == "train800"
    with pytest.raises(QgoftError, match="leaves no rows for validation"):
        settings(*words, "eval_scheme=train800", "selection=best_validation")
