"""Complete short runs on the embedded benchmark: record, selection, skipping by key, and every kind of failure."""

import dataclasses
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from qgoft import records
from qgoft.config.compose import compose_settings
from qgoft.config.settings import OptimSettings
from qgoft.errors import Diverged, QgoftError
from qgoft.lease import Lease
from qgoft.models import load_classifier
from qgoft.run_id import identify
from qgoft.train import adapter_files
from qgoft.train import loop as fit_module
from qgoft.train import record as record_module
from qgoft.train import resources as resources
from qgoft.train import run as run_module
from qgoft.train.optim import build_optimizer, build_schedule, count_steps, evaluation_steps
from qgoft.train.rescore import rescore
from qgoft.train.run import prepare, run
from tests.forked import run_script

SHORT = ["train.max_steps=6", "train.num_evals=2"]


def settings(tmp_path, *words):
    return compose_settings([f"results.root={tmp_path}", *SHORT, *words])


def history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("words", [("task=glue/cola",), ("task=glue/stsb", "method=goft"), ("task=glue/mnli", "method=linear")])
def test_run_writes_a_complete_record(tmp_path, words):
    s = settings(tmp_path, *words)
    record = run(s)
    directory = identify(s).directory
    assert records.read_record(directory / "record.json") == record
    if record["status"] == "diverged":  # six steps may leave constant predictions; the record must then say so
        assert "undefined" in record["reason"]
        return
    assert record["status"] == "done"
    assert record["cost"]["steps"] == 6
    assert record["metrics"][record["primary"]]["n"] == 2000
    assert record["provenance"]["data"]["rows"]["train"] == 1000
    assert record["provenance"]["data"]["subset"] is False
    assert record["provenance"]["hardware"]["threads"] >= 1
    lines = history(directory)
    assert [line["step"] for line in lines if "score" in line] == [3, 6]
    with gzip.open(directory / "predictions.jsonl.gz", "rt") as file:
        predictions = [json.loads(line) for line in file]
    assert len(predictions) == 2000
    if s.task.name == "mnli":
        assert {p["set"] for p in predictions} == {"matched", "mismatched"}
        assert record["metrics"]["accuracy"]["n"] == 2000
        assert record["metrics"]["accuracy_mismatched"]["n"] == 1000


def test_finished_run_is_skipped(tmp_path, monkeypatch):
    s = settings(tmp_path)
    first = run(s)
    monkeypatch.setattr(run_module, "prepare", lambda *a: pytest.fail("was run again"))
    assert run(s) == first


def test_run_is_seeded(tmp_path):
    one, two = (run(settings(tmp_path / name)) for name in "ab")
    assert one["metrics"] == two["metrics"]
    assert one["key"] == two["key"]
    other = run(settings(tmp_path / "a", "seed=1"))
    assert other["key"] != one["key"]


@pytest.mark.parametrize("method", ["qgoft", "lora"])
def test_reloaded_adapter_reproduces_the_score(tmp_path, method):
    """The saved adapter in a new model, unmerged and merged, gives the predictions of the record."""
    s = settings(tmp_path, f"method={method}", "task=glue/rte")
    run(s)
    run_id = identify(s)
    with gzip.open(run_id.directory / "predictions.jsonl.gz", "rt") as file:
        recorded = [json.loads(line)["prediction"] for line in file]
    prepared = prepare(s, run_id)
    suite = prepared.suite
    model = peft.PeftModel.from_pretrained(suite.build_model(s, run_id.model.directory), run_id.directory / "adapter").eval()
    assert suite.evaluate("test:", model, prepared.accelerator).predictions == recorded
    again = suite.evaluate("test:", model.merge_and_unload(), prepared.accelerator).predictions
    # Rounding may change an item whose two logits are equal to seven digits, and no other.
    assert sum(a != b for a, b in zip(again, recorded, strict=True)) <= 2
    assert "/" not in json.loads((run_id.directory / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_methods_without_adapter_save_parameters(tmp_path):
    s = settings(tmp_path, "method=bitfit")
    record = run(s)
    saved = load_file(identify(s).directory / "adapter" / "trained.safetensors")
    assert sum(t.numel() for t in saved.values()) == record["params"]["trainable"] + record["params"]["head"]


def test_selection_best_validation(tmp_path, monkeypatch):
    """The scores are made to fall: the model must end as it was at the first evaluation."""
    s = settings(tmp_path, "train.max_steps=4", "train.num_evals=4")
    seen = []
    fixed = iter([0.9, 0.8, 0.7, 0.6])

    def score(prepared):
        def look():
            seen.append(torch.cat([p.detach().flatten() for p in prepared.adapted.model.parameters() if p.requires_grad]))
            return next(fixed)

        return look

    monkeypatch.setattr(run_module, "build_selector", score)
    kept = {}
    monkeypatch.setattr(run_module, "save_adapter", lambda prepared, directory: kept.update(prepared=prepared))
    run(s)
    final = torch.cat([p.detach().flatten() for p in kept["prepared"].adapted.model.parameters() if p.requires_grad])
    assert torch.equal(final, seen[0])
    assert not torch.equal(final, seen[3])


def test_selection_last_never_evaluates(tmp_path):
    s = settings(tmp_path, "selection=last")
    run(s)
    assert not [line for line in history(identify(s).directory) if "score" in line]


def test_selection_best_reported(tmp_path):
    s = settings(tmp_path, "selection=best_reported")
    record = run(s)
    scores = [line["score"] for line in history(identify(s).directory) if "score" in line]
    assert record["selection"] == "best_reported"
    known = [score for score in scores if score is not None]
    assert record["metrics"]["matthews"]["value"] == pytest.approx(max(known))


def test_penalty_weight_has_an_effect(tmp_path):
    errors = {}
    for penalty in (0.0, 10.0):
        record = run(settings(tmp_path, "train.max_steps=12", "optim.lr=0.05", f"method.penalty={penalty}"))
        errors[penalty] = record["orthogonality"]["penalty"]
    assert errors[10.0] < errors[0.0] / 2


def test_non_finite_loss_is_diverged(tmp_path):
    s = settings(tmp_path, "optim.lr=1.0e+18", "optim.head_lr=1.0e+18", "optim.max_grad_norm=null", "optim.warmup=0")
    record = run(s)
    assert record["status"] == "diverged"
    assert "step" in record["reason"] or "undefined" in record["reason"]
    assert not identify(s).is_done


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Diverged("the loss is nan at step 3"), "diverged"),
        (MemoryError("64 GB"), "oom"),
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_failed_run_is_recorded_and_retried(tmp_path, monkeypatch, error, status):
    s = settings(tmp_path)

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", fail)
        if status == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                run(s)
        else:
            run(s)
    record = identify(s).read()
    assert record["status"] == status
    assert record["reason"]
    assert ("train.batch_size=16 train.gradient_accumulation_steps=2" in record["reason"]) == (status == "oom")
    assert record["metrics"] == {}
    assert record["cost"]["steps"] is None
    assert run(s)["status"] in ("done", "diverged")


def test_failed_run_with_an_unusable_device_is_recorded(tmp_path, monkeypatch):
    """After a CUDA error every later operation on the device fails."""
    s = settings(tmp_path)

    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "predict_test_sets", fail)
        patch.setattr(record_module, "orthogonality_error", fail)
        record = run(s)
    assert record["status"] == "failed"
    assert "illegal memory access" in record["reason"]
    assert record["orthogonality"] == {"max_error": None, "penalty": None}


def test_insufficient_disk_before_training(tmp_path, monkeypatch):
    s = settings(tmp_path, "method=full")
    prepared = prepare(s, identify(s))
    trained = 4 * (prepared.adapted.trainable + prepared.adapted.head)
    # An adapter, two checkpoints and one being written, each of four copies.
    assert resources.disk_bytes(prepared.adapted, s) == 13 * trained
    assert resources.device_bytes(prepared.adapted) >= 4 * trained
    assert resources.device_bytes(prepared.adapted) < 4 * trained + 4 * prepared.adapted.total
    monkeypatch.setattr(
        resources.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 13 * trained + 1, 13 * trained - 1)
    )
    with pytest.raises(QgoftError, match=r"MB free, and this run writes .* MB"):
        run(s)
    assert not (identify(s).directory / "record.json").exists()
    run(settings(tmp_path, "method=full", "results.checkpoint_interval=null"))  # there is space only for the adapter
    gpu = SimpleNamespace(device=torch.device("cuda"), distributed_type=DistributedType.NO)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 10**9))
    for total, message in (
        (resources.device_bytes(prepared.adapted), None),
        (resources.device_bytes(prepared.adapted) - 1, "ACCELERATE=fsdp2"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, total=total: SimpleNamespace(total_memory=total))
        with nullcontext() if message is None else pytest.raises(QgoftError, match=message):
            resources.check_resources(prepared.adapted, s, gpu)


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    s = settings(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "save_adapter", full)
    with pytest.raises(QgoftError, match=r"cannot write below results.root=.*No space left"):
        run(s)
    assert not (identify(s).directory / "record.json").exists()


def test_full_disk_while_saving_weights(tmp_path, monkeypatch):
    """safetensors raises its own error with the reason as text."""
    from safetensors import SafetensorError

    s = settings(tmp_path)

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(adapter_files, "_save_weights", full)
    with pytest.raises(QgoftError, match="No space left"):
        run(s)


def test_non_finite_predictions_are_diverged(tmp_path, monkeypatch):
    s = settings(tmp_path, "selection=last")
    fit = run_module.fit

    def fit_and_break(adapted, *arguments):
        result = fit(adapted, *arguments)
        with torch.no_grad():
            next(p for n, p in adapted.model.named_parameters() if n in adapted.head_names).fill_(torch.nan)
        return result

    monkeypatch.setattr(run_module, "fit", fit_and_break)
    record = run(s)
    assert (record["status"], record["reason"]) == ("diverged", "the model's predictions are not finite")


@pytest.fixture
def scaled(monkeypatch):
    """Train as under fp16 on a CPU: a real loss scaler, and as many overflowing gradients as the returned list states."""
    overflow, prepare = [0], run_module.prepare

    def prepare_scaled(*arguments):
        prepared = prepare(*arguments)
        accelerator, scaler = prepared.accelerator, torch.amp.GradScaler("cpu")
        accelerator.scaler = scaler
        accelerator.unscale_gradients = lambda optimizer=None: [scaler.unscale_(one.optimizer) for one in accelerator._optimizers]

        def spoil(grad):
            overflow[0] -= 1
            return grad * math.inf if overflow[0] >= 0 else grad

        adapted = prepared.adapted
        next(p for name, p in adapted.model.named_parameters() if name in adapted.head_names).register_hook(spoil)
        return prepared

    monkeypatch.setattr(run_module, "prepare", prepare_scaled)
    return overflow


def test_endless_overflow_is_diverged(tmp_path, monkeypatch, scaled):
    """Under fp16 a step whose gradients overflow is skipped, and the next has a smaller loss scale; here every one overflows."""
    monkeypatch.setattr(fit_module, "MAX_OVERFLOWS", 3)
    scaled[0] = 10**6
    record = run(settings(tmp_path))
    assert (record["status"], record["reason"]) == ("diverged", "the gradients of 3 steps in a row overflow in fp16, after step 0")


def test_overflowing_batches_are_not_steps(tmp_path, scaled):
    s = settings(tmp_path, "train.max_steps=4", "optim.schedule=linear", "optim.warmup=0")
    scaled[0] = 2
    assert run(s)["cost"]["steps"] == 4
    assert scaled[0] == -4, "six batches"
    lines = [json.loads(line) for line in (identify(s).directory / "history.jsonl").read_text().splitlines()]
    rates = [line["lr"] / s.optim.lr for line in lines if "lr" in line]
    assert rates == pytest.approx([0.75, 0.5, 0.25, 0.0], abs=1e-6), "the schedule waits too"
    assert all(math.isfinite(line["norm"]) for line in lines if "norm" in line)


def test_throughput_counts_the_last_batch(tmp_path):
    """1000 rows in batches of 32: the rows of 31.25 full batches in 32 steps."""
    s = settings(tmp_path)
    prepared = prepare(s, identify(s))
    assert record_module._examples_per_step(prepared) == 1000 / 32
    prepared.settings = dataclasses.replace(s, train=dataclasses.replace(s.train, gradient_accumulation_steps=3))
    assert record_module._examples_per_step(prepared) == 1000 / 11
    prepared.settings = dataclasses.replace(s, train=dataclasses.replace(s.train, drop_last=True))
    assert record_module._examples_per_step(prepared) == 32


def test_weight_decay_on_biases(tmp_path):
    for words, is_spared in (("protocol=pocket", False), ("protocol=goft_icml24", True)):
        found = compose_settings([words, "task=glue/stsb", "method=full", "optim.weight_decay=0.1"])
        s = settings(tmp_path, "method=full")
        adapted = prepare(s, identify(s)).adapted
        decay = {id(p): group["weight_decay"] for group in build_optimizer(adapted, found.optim).param_groups for p in group["params"]}
        by_name = {name: decay[id(p)] for name, p in adapted.model.named_parameters()}
        assert {by_name[name] for name in by_name if "bias" in name or "LayerNorm" in name} == {0.0 if is_spared else 0.1}
        assert {by_name[name] for name in by_name if "bias" not in name and "LayerNorm" not in name} == {0.1}


def test_encoder_16_bit_needs_autocast(tmp_path):
    with pytest.raises(
        QgoftError, match=r"model.dtype=bfloat16: the head is trained in float32, which needs autocast; set train.mixed_precision=bf16"
    ):
        settings(tmp_path, "model.dtype=bfloat16")


def test_fp16_without_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine can train in fp16")
    with pytest.raises(QgoftError, match=r"train.mixed_precision=fp16 does not work"):
        run(settings(tmp_path, "train.mixed_precision=fp16"))


def test_damaged_config_and_tokenizer(tmp_path):
    base = identify(settings(tmp_path)).model.directory
    for damaged in ("config.json", "tokenizer.json"):
        directory = tmp_path / damaged.partition(".")[0]
        directory.mkdir()
        for path in base.iterdir():
            (directory / path.name).write_bytes(b"{" if path.name == damaged else path.read_bytes())
        with pytest.raises(QgoftError, match=r"cannot be read|no readable tokenizer"):
            run(settings(tmp_path, f"model.path={directory}"))


def test_weights_of_another_model(tmp_path):
    """An adapter or model for another base: shapes differ, and the message names them."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    other = DebertaV2ForSequenceClassification(
        DebertaV2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=600)
    )
    base = identify(settings(tmp_path)).model.directory
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((base / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_text((base / name).read_text())
    s = settings(tmp_path, f"model.path={tmp_path / 'other'}")
    with pytest.raises(QgoftError, match=r"do not fill the backbone|cannot be read"):
        run(s)


def test_damaged_weights(tmp_path):
    base = identify(settings(tmp_path)).model.directory
    (tmp_path / "half").mkdir()
    for path in base.iterdir():
        data = path.read_bytes()
        (tmp_path / "half" / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    with pytest.raises(QgoftError, match=r"cannot be read.*fetch them again"):
        run(settings(tmp_path, f"model.path={tmp_path / 'half'}"))


@pytest.mark.parametrize("classes", [2, 5])
def test_head_of_another_task_is_reinitialised(classes, tmp_path):
    """With the same number of classes or another: only the backbone of a fine-tuned model is used."""
    base = identify(settings(tmp_path)).model.directory
    tuned = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    tuned.classifier.weight.data.fill_(7.0)
    tuned.save_pretrained(tmp_path / "tuned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tuned" / name).write_text((base / name).read_text())
    s = settings(tmp_path, f"model.path={tmp_path / 'tuned'}", "task=glue/rte")
    torch.manual_seed(0)
    model = load_classifier(s, tmp_path / "tuned")
    assert model.classifier.weight.shape[0] == 2
    assert 0 < model.classifier.weight.abs().max() < 1
    assert not model.classifier.bias.any()
    plain = load_classifier(settings(tmp_path, "task=glue/rte"), base)
    assert torch.equal(model.deberta.embeddings.word_embeddings.weight, plain.deberta.embeddings.word_embeddings.weight)


def test_random_backbone_is_another_run(tmp_path):
    record = run(settings(tmp_path, "model=pocket_deberta_random", "task=glue/rte"))
    assert record["model"] == "pocket-deberta-random"
    assert record["settings"]["model"]["init"] == "random"


def test_gradient_checkpointing_keeps_the_score(tmp_path):
    values = [run(settings(tmp_path, f"train.gradient_checkpointing={flag}", "selection=last"))["metrics"] for flag in ("true", "false")]
    assert values[0]["accuracy"]["value"] == pytest.approx(values[1]["accuracy"]["value"], abs=0.5)


@pytest.mark.slow
def test_bf16_training(tmp_path):
    assert run(settings(tmp_path, "train.mixed_precision=bf16"))["status"] in ("done", "diverged")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # peft's warning about names that it wrote itself
def test_adalora_prunes_ranks(tmp_path):
    s = settings(tmp_path, "method=adalora", "train.max_steps=30", "train.num_evals=3", "task=glue/rte")
    record = run(s)
    assert record["status"] == "done"
    values = {n: t for n, t in load_file(identify(s).directory / "adapter" / "adapter_model.safetensors").items() if "lora_E" in n}
    # r = 8 per layer on average over 18 layers; it starts at 12.
    assert sum(int((t != 0).sum()) for t in values.values()) <= 8 * 18
    _, metrics = rescore(identify(s).directory, merge=False)
    assert metrics["accuracy"].value == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.1)


def test_steps_and_evaluations():
    train = compose_settings(
        ["train.epochs=3", "train.max_steps=null", "train.num_evals=null", "train.gradient_accumulation_steps=2"]
    ).train
    assert count_steps(train, 15) == (24, 8)
    assert evaluation_steps(train, 24, 8) == {8, 16, 24}
    short = compose_settings(["train.epochs=3", "train.max_steps=5", "train.num_evals=2"]).train
    assert count_steps(short, 15) == (5, 15)
    assert evaluation_steps(short, 5, 15) == {2, 5}


def test_record_states_device_and_splits(tmp_path):
    s = settings(tmp_path)
    prepared = prepare(s, identify(s))
    outcome = prepared.suite.evaluate("validation", prepared.adapted.model, prepared.accelerator)
    assert len(outcome.predictions) == 500
    assert set(outcome.predictions) <= {0, 1}


def test_wandb_offline_without_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("QGOFT_SWEEP", "table1, pocket")
    s = settings(tmp_path, "wandb.mode=offline")
    record = run(s)
    assert record["status"] in ("done", "diverged")
    directory = identify(s).directory
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    sent = log.read_bytes()
    assert b"table1, pocket" in sent, "a sweep is a group"
    assert record["key"].encode() in sent, "the record goes along"
    assert str(tmp_path).encode() not in sent.replace(str(directory).encode(), b""), "paths stay here"
    assert "api_key" not in json.dumps(record)
    assert history(directory)


def test_tensorboard_has_the_same_scalars(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("QGOFT_SWEEP", "table1, pocket")
    s = settings(tmp_path, "task=glue/stsb", "tensorboard.enabled=true")
    record = run(s)
    directory = identify(s).directory
    shown = EventAccumulator(str(directory / "tensorboard")).Reload()
    losses = {line["step"]: line["loss"] for line in history(directory) if "loss" in line}
    assert {event.step: event.value for event in shown.Scalars("loss")} == pytest.approx(losses)
    assert [event.value for event in shown.Scalars("score")] == pytest.approx(
        [line["score"] for line in history(directory) if "score" in line]
    )
    assert shown.Scalars("reported/pearson_spearman")[0].value == pytest.approx(record["metrics"]["pearson_spearman"]["value"])
    texts = [event.tensor_proto.string_val[0].decode() for tag in shown.Tags()["tensors"] for event in shown.Tensors(tag)]
    assert "table1, pocket" in texts
    assert any(record["key"] in text for text in texts)


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(QgoftError, match="pip install tensorboard"):
        run(settings(tmp_path, "tensorboard.enabled=true"))


@pytest.mark.slow
def test_run_in_two_processes(tmp_path, repository):
    """torchrun with gloo: one record, written once, that states it; the batch is split."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(repository / "scripts" / "train.py"),
    ]
    words = ["train.epochs=0.25", "train.max_steps=null", "train.num_evals=1", f"results.root={tmp_path}", "task=glue/rte"]
    subprocess.run([*command, *words], check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=repository)
    (record,) = records.read_records(tmp_path)
    assert record["provenance"]["hardware"]["processes"] == 2
    assert record["metrics"]["accuracy"]["n"] == 2000
    # 1000 rows in batches of 32, split between two: as many steps as one process makes.
    assert record["cost"]["steps"] == 8
    alone = run(compose_settings(words))
    assert alone["cost"]["steps"] == 8
    assert alone["key"] != record["key"]
    assert alone["metrics"]["accuracy"]["value"] == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.2)
    one, two = ([line["loss"] for line in history(tmp_path / "runs" / key) if "loss" in line] for key in (alone["key"], record["key"]))
    assert two == pytest.approx(one, rel=2e-6)


def test_min_lr_is_the_final_rate():
    """GOFT's VTAB recipe ends at 1e-5, also for a head whose learning rate is ten times larger. Against the textbook formula."""
    body, head = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [body], "lr": 1e-3}, {"params": [head], "lr": 1e-2}])
    optim = OptimSettings(lr=1e-3, head_lr=1e-2, weight_decay=0.0, warmup=10, schedule="cosine", max_grad_norm=None, min_lr=1e-5)
    schedule = build_schedule(optimizer, optim, 110)
    seen = []
    for _ in range(110):
        seen.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    assert seen[5] == pytest.approx([5e-4, 5e-3])
    assert seen[10] == pytest.approx(
        [top * (1 + math.cos(math.pi / 11)) / 2 + 1e-5 * (1 - math.cos(math.pi / 11)) / 2 for top in (1e-3, 1e-2)]
    )
    # timm's cosine includes the warmup: half way down at step 55, not 60.
    assert seen[55] == pytest.approx([(1e-3 + 1e-5) / 2, (1e-2 + 1e-5) / 2])
    assert schedule.get_last_lr() == pytest.approx([1e-5, 1e-5])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.min_lr=1e-5"], "optim.min_lr=1e-05 is the end of a cosine, and optim.schedule is linear"),
        (["train.hidden_dropout=1.5"], "train.hidden_dropout is 1.5; allowed are 0 and more, below 1"),
    ],
)
def test_settings_without_effect_are_refused(words, message):
    with pytest.raises(QgoftError, match=message):
        compose_settings(["task=glue/rte", *words])


@pytest.mark.parametrize("length", [["train.max_steps=3"], ["train.max_steps=null", "train.epochs=1"]])
def test_training_without_a_batch(tmp_path, length):
    s = settings(tmp_path, "train.drop_last=true", "train.batch_size=8192", *length)
    with pytest.raises(QgoftError, match=r"with train\.drop_last=true no batch remains; reduce train.batch_size"):
        run(s)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    s = settings(tmp_path)

    def closed(settings):
        raise PermissionError(13, "Permission denied", "/elsewhere/model.safetensors")

    monkeypatch.setattr(run_module, "identify", closed)
    with pytest.raises(QgoftError, match=r"^/elsewhere/model\.safetensors: Permission denied; make it accessible"):
        run(s)


def test_wandb_without_login(tmp_path, monkeypatch):
    import wandb

    def refuse(**settings):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(QgoftError, match=r"wandb.mode=online: UsageError: No API key configured.*; log in, or set wandb.mode=offline"):
        run(settings(tmp_path, "wandb.mode=online"))


def test_run_of_another_process(tmp_path, repository):
    s = settings(tmp_path)
    with Lease(identify(s).directory):
        done = run_script("train", *SHORT, f"results.root={tmp_path}", cwd=repository)
    assert done.returncode == 2
    assert done.stderr.startswith("qgoft: ")
    assert "Traceback" not in done.stderr
