"""The adapter in other people's loops and loaders: as docs/goft.md shows."""

import importlib.util
import subprocess
import sys

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import qgoft
from qgoft.pocket.weights import weights_directory

LAMBDA = 0.5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Save a small decoder with the tokenizer of the pocket one."""
    directory = tmp_path_factory.mktemp("base")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(weights_directory("pocket-llama") / "tokenizer.json"), eos_token="</s>", pad_token="[PAD]"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def adapted(base, **settings):
    torch.manual_seed(1)
    config = qgoft.GoftConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False, **settings)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)


def rows(base, number=8):
    ids = torch.arange(number * 6).reshape(number, 6) % 50
    return [{"input_ids": row, "labels": row} for row in ids]


def blocks(model):
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "goft_blocks" in name])


def arguments(tmp_path, **more):
    fixed = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
    }
    return {
        "output_dir": str(tmp_path),
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "disable_tqdm": True,
        **fixed,
        **more,
    }


def trained_by_hand(base, order):
    """Two steps of SGD on the mean loss plus lambda times the penalty."""
    model = adapted(base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        batch = [order[i] for i in range(4 * step, 4 * step + 4)]
        ids = torch.stack([row["input_ids"] for row in batch])
        loss = model(input_ids=ids, labels=ids).loss + LAMBDA * qgoft.orthogonality_penalty(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return blocks(model)


def test_plain_loop_with_add_penalty_gradient(base):
    model = adapted(base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    data = rows(base)
    for step in range(2):
        ids = torch.stack([row["input_ids"] for row in data[4 * step : 4 * step + 4]])
        model(input_ids=ids, labels=ids).loss.backward()
        qgoft.add_penalty_gradient(model, LAMBDA)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(blocks(model), trained_by_hand(base, data), rtol=1e-4, atol=5e-5)


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_transformers_trainer(base, tmp_path):
    model, data = adapted(base), rows(base)
    callback = qgoft.OrthogonalityPenaltyCallback(LAMBDA)
    InOrder(model, TrainingArguments(**arguments(tmp_path)), train_dataset=data, callbacks=[callback]).train()
    torch.testing.assert_close(blocks(model), trained_by_hand(base, data), rtol=1e-4, atol=5e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed (pip install trl); its trainer derives from that above"
)
def test_sft_trainer(base, tmp_path):
    import datasets
    import trl

    data = datasets.Dataset.from_dict({"text": [f"the {n} and the {n + 1}" for n in range(8)]})
    found = {}
    for weight in (0.0, LAMBDA):
        model = adapted(base)
        config = trl.SFTConfig(**arguments(tmp_path), dataset_text_field="text")
        tokenizer = AutoTokenizer.from_pretrained(base)
        callback = qgoft.OrthogonalityPenaltyCallback(weight)
        trl.SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[callback]).train()
        found[weight] = qgoft.orthogonality_penalty(model).item()
    assert found[LAMBDA] < found[0.0]


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    model = adapted(base).eval()
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    ids = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        return directory, ids, model(ids).logits


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def test_loading_by_every_way(base, saved, tmp_path):
    directory, ids, expected = saved
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(logits(plain, ids), expected)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(plain, directory), ids), expected)
    torch.testing.assert_close(logits(peft.AutoPeftModelForCausalLM.from_pretrained(directory), ids), expected)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(directory), ids), expected)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(directory))
    torch.testing.assert_close(logits(model, ids), expected)


def test_add_adapter_of_transformers(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(qgoft.GoftConfig(target_modules=["q_proj", "v_proj"]))
    free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert free
    assert all("goft_blocks" in name for name in free)


def test_pipeline_and_merged_checkpoint(base, saved, tmp_path):
    directory, ids, expected = saved
    tokenizer = AutoTokenizer.from_pretrained(base)
    one = pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(directory), tokenizer=tokenizer)
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(directory).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids), expected, atol=1e-4, rtol=1e-4)
    two = pipeline("text-generation", model=str(tmp_path / "merged"))
    asked = {"do_sample": False, "max_new_tokens": 4}
    assert one("the", **asked) == two("the", **asked)


@pytest.mark.parametrize("first", ["peft", "qgoft"])
def test_registration_in_either_order(first):
    second = {"peft": "qgoft", "qgoft": "peft"}[first]
    program = f"import {first}, {second}; from peft.utils import PeftType; print(PeftType.GOFT, peft.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GOFT].__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "GoftConfig"
