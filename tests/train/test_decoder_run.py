"""Decoders: one training for several tasks, stored answers, and a record for every suite."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models import load_decoder, load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.run_id import identify
from qgoft.tasks.decoder.generate import AnswerFile, GenerationSettings, write_answers
from qgoft.tasks.decoder.mmlu import Mmlu
from qgoft.tasks.decoder.suite import IGNORE_INDEX
from qgoft.tasks.registry import build_suite
from qgoft.train import run as run_module
from qgoft.train.rescore import rescore
from qgoft.train.run import prepare, run

SHORT = ["train.max_steps=6", "train.num_evals=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def settings_for(root, task, *words, method="qgoft"):
    return compose_settings([f"task={task}", f"method={method}", f"results.root={root}", *SHORT, *words])


@pytest.fixture(scope="module")
def first(root):
    return run(settings_for(root, "commonsense/boolq"))


def test_first_decoder_task_trains(first):
    assert first["status"] == "done"
    assert set(first["metrics"]) == {"accuracy", "no_answer"}
    assert not first["metrics"]["no_answer"]["higher_is_better"]
    assert first["metrics"]["accuracy"]["n"] == 200
    assert first["provenance"]["training"]["shared"] is False
    assert first["provenance"]["data"]["rows"] == {"train": 1982, "validation": 200, "test": 200}
    assert not first["provenance"]["data"]["subset"]
    assert first["cost"]["steps"] == 6


def test_held_out_rows_are_official(root):
    s = settings_for(root, "commonsense/boolq", "train.max_length=24")
    suite = build_suite(s, identify(s))
    assert suite.rows["train"] < 1982
    assert any("fills the length" in what for what in suite.data_fixes)
    assert not suite.is_subset


def test_holdout_with_validation_is_refused(root):
    """They would have no effect, and would be in the key."""
    with pytest.raises(QgoftError, match=r"train\.holdout_rows=8, but commonsense/boolq already has a validation split for selection"):
        run(settings_for(root, "commonsense/boolq", "train.holdout_rows=8"))


def test_second_task_loads_the_adapter(root, first):
    second = run(settings_for(root, "commonsense/piqa"))
    training = second["provenance"]["training"]
    assert (training["key"], training["shared"]) == (first["provenance"]["training"]["key"], True)
    assert training["by"]["commit"] == first["provenance"]["commit"]
    assert "by" not in first["provenance"]["training"]
    assert second["key"] != first["key"]
    assert second["cost"]["peak_memory_bytes"] is None
    assert second["cost"]["seconds"] == first["cost"]["seconds"]
    assert second["orthogonality"] == first["orthogonality"]
    one, two = (root / "runs" / record["key"] for record in (first, second))
    assert (one / "adapter" / "adapter_model.safetensors").read_bytes() == (two / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (one / "history.jsonl").read_bytes() == (two / "history.jsonl").read_bytes()


def test_rerun_keeps_its_own_training(tmp_path, monkeypatch):
    """A failing judge, or a signal while answers are generated: the same command finds its own training."""
    s = settings_for(tmp_path, "commonsense/boolq", "seed=7")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "predict_test_sets", lambda prepared: 1 / 0)
        assert run(s)["status"] == "failed"
    record = run(s)
    assert record["status"] == "done"
    training = record["provenance"]["training"]
    assert training["shared"] is False
    assert training["by"]["commit"] == record["provenance"]["commit"]
    assert "run" not in training["by"]
    assert record["cost"]["peak_memory_bytes"] > 0


@pytest.mark.parametrize("merge", [False, True])
def test_rescore_decoder_run(root, first, merge):
    directory = root / "runs" / first["key"]
    before = (directory / "answers-0.jsonl").read_bytes()
    _, measured = rescore(directory, merge=merge)
    assert measured["accuracy"].value == pytest.approx(first["metrics"]["accuracy"]["value"], abs=0.6)
    assert (directory / "answers-0.jsonl").read_bytes() == before


def test_other_settings_train_separately(root, first):
    other = run(settings_for(root, "commonsense/piqa", "optim.lr=0.001"))
    assert other["provenance"]["training"]["shared"] is False
    assert other["provenance"]["training"]["key"] != first["provenance"]["training"]["key"]


def test_shared_training_of_adalora(root):
    """The ranks of its adapter change during training."""
    words = ["train.max_steps=30", "task.options.new_tokens=2"]
    one, two = (run(settings_for(root, f"math/{task}", *words, method="adalora")) for task in ("gsm8k", "math"))
    saved = json.loads((root / "runs" / one["key"] / "adapter" / "adapter_config.json").read_text())
    assert any(not all(kept) for kept in saved["rank_pattern"].values()), "nothing was pruned, and nothing is tested"
    assert two["provenance"]["training"]["shared"]
    assert two["status"] == "done", two["reason"]
    weights = [(root / "runs" / record["key"] / "adapter" / "adapter_model.safetensors").read_bytes() for record in (one, two)]
    assert weights[0] == weights[1]


def test_damaged_shared_training_is_repeated(root, first, capfd):
    directory = root / "trained" / first["provenance"]["training"]["key"] / "adapter"
    path = directory / "adapter_model.safetensors"
    content = path.read_bytes()
    weights = load_file(path)
    save_file({name: -3 * tensor for name, tensor in weights.items()}, path)
    record = run(settings_for(root, "commonsense/siqa"))
    assert record["status"] == "done"
    assert f"{directory} is not the trained adapter; training again" in capfd.readouterr().err
    assert record["provenance"]["training"] == {"key": first["provenance"]["training"]["key"], "shared": False}
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("math/gsm8k", {"accuracy", "no_answer"}),
        ("math/math", {"accuracy", "no_answer"}),
        ("instruct/alpaca", {"loss"}),
        (
            "instruct/mmlu",
            {f"mmlu{shots}_{group}" for shots in (0, 5) for group in ("stem", "social", "humanities", "other", "avg")},
        ),
    ],
)
def test_decoder_tasks_write_records(root, task, metrics):
    record = run(settings_for(root, task, method="lora"))
    assert record["status"] == "done", record["reason"]
    assert set(record["metrics"]) == metrics
    assert record["params"]["head"] == 0
    lines = gzip.decompress((root / "runs" / record["key"] / "predictions.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(lines) in {metric["n"] for metric in record["metrics"].values()} | {2 * record["provenance"]["data"]["rows"].get("test", 0)}


def test_vicuna_generates_judges_and_scores(root):
    record = run(settings_for(root, "instruct/vicuna", method="base"))
    assert record["status"] == "done", record["reason"]
    assert record["params"]["trainable"] == 0
    assert record["cost"]["steps"] == 0
    directory = root / "runs" / record["key"]
    judgments = [json.loads(line) for line in (directory / "judgments.jsonl").read_text().splitlines()][1:]
    assert len(judgments) == 80
    assert all(1 <= judgment["rating"] <= 10 and judgment["text"] for judgment in judgments)
    mean = sum(judgment["rating"] for judgment in judgments) / 80
    assert record["metrics"]["score"]["value"] == pytest.approx(mean)
    assert record["metrics"]["unrated"]["value"] == 0
    assert sum(metric["n"] for name, metric in record["metrics"].items() if name.startswith("score_")) == 80


def test_rule_judge_needs_known_answers(root):
    with pytest.raises(QgoftError, match=r"no judge prompt; use judge\.kind=rule"):
        run(settings_for(root, "instruct/vicuna", "judge.kind=openai", "judge.model=x"))


def test_decoders_refuse_best_reported():
    with pytest.raises(QgoftError, match="does not exist for suite math"):
        compose_settings(["task=math/gsm8k", "selection=best_reported"])


def test_loss_covers_answer_and_end_token(root):
    settings = settings_for(root, "math/gsm8k")
    suite = prepare(settings, identify(settings)).suite
    row = suite.train[0]
    batch = suite.collate([row, suite.train[1]])
    prompt = row["prompt"]
    words = suite.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words[0] == "<s>"
    assert words[prompt - 1] == "[RESP]"
    assert words[-1] == "</s>"
    length = len(row["input_ids"])
    assert (batch["labels"][0, :prompt] == IGNORE_INDEX).all()
    assert batch["labels"][0, prompt:length].tolist() == row["input_ids"][prompt:]
    assert (batch["labels"][0, length:] == IGNORE_INDEX).all()
    assert batch["attention_mask"][0].sum() == length


class Counting(torch.nn.Module):
    """A model that counts its calls of generate."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def generate(self, **inputs):
        self.calls += 1
        return self.model.generate(**inputs)


@pytest.fixture(scope="module")
def writer(root):
    directory = weights_directory("pocket-llama")
    return load_decoder(settings_for(root, "math/gsm8k"), directory), load_tokenizer(directory)


PROMPTS = [f"[INST] what is {n} + 2 ? [RESP] " for n in range(1, 11)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_resumes_after_a_kill(writer, tmp_path, temperature):
    model, tokenizer = writer
    writing = GenerationSettings(max_new_tokens=8, temperature=temperature, top_p=0.9, batch_size=4, seed=3)
    whole = write_answers(model, PROMPTS, tokenizer, Accelerator(cpu=True), writing, AnswerFile(tmp_path / "a", "answers", "w", 0))
    assert len(whole) == len(PROMPTS)
    file = AnswerFile(tmp_path / "a", "answers", "w", 0)
    lines = file.mine.path.read_text().splitlines(keepends=True)
    # The header, one complete batch, and a line truncated by a kill.
    file.mine.path.write_text("".join(lines[:5]) + lines[5][:9])
    counting = Counting(model)
    again = write_answers(counting, PROMPTS, tokenizer, Accelerator(cpu=True), writing, AnswerFile(tmp_path / "a", "answers", "w", 0))
    assert again == whole
    assert counting.calls == 2
    other = AnswerFile(tmp_path / "a", "answers", "other weights", 0)
    assert other.read() == {}


def test_generation_independent_of_batching(writer, tmp_path):
    model, tokenizer = writer
    prompts = [*PROMPTS, "[INST] repeat the sentence [INP] mary gives tom two apples in the park . [RESP] "]
    found = []
    for size in (1, 8):
        writing = GenerationSettings(max_new_tokens=8, temperature=0.0, top_p=1.0, batch_size=size, seed=0)
        found.append(write_answers(model, prompts, tokenizer, Accelerator(cpu=True), writing, AnswerFile(tmp_path, f"b{size}", "w", 0)))
    assert found[0] == found[1]


def test_mmlu_refuses_several_processes(monkeypatch):
    suite = object.__new__(Mmlu)
    suite.settings = compose_settings(["task=instruct/mmlu", "protocol=goft_icml24", "method=goft", "task.options.prompt=lm_eval"])
    suite.run_id = SimpleNamespace(data=SimpleNamespace(files={"template": ()}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(QgoftError, match="instruct/mmlu is scored by lm-eval, which runs in one process, and this run has 2; set NPROC=1"):
        suite.load_task()


@pytest.mark.parametrize(
    ("task", "own"), [("math/math", "math_equivalent"), ("math/gsm8k", "number_equivalent"), ("commonsense/boolq", "label_named")]
)
def test_published_scoring_keeps_own_metric(root, task, own):
    """The rule of the papers' code is `accuracy`, and this project's is next to it; beams and stop texts are settings of the answers."""
    words = ["+task.options.scoring=published", "task.options.new_tokens=6", "+task.options.num_beams=2", "+task.options.stop=[stop]"]
    record = run(settings_for(root, task, *words))
    assert record["status"] == "done"
    assert set(record["metrics"]) == {"accuracy", own, "no_answer"}
    assert record["metrics"][own]["n"] == record["metrics"]["accuracy"]["n"]


def test_loss_on_all_tokens(root):
    """train.loss_on=all also labels the prompt, in training and on the validation rows."""
    losses = {}
    for loss_on in ("answer", "all"):
        s = settings_for(root, "commonsense/boolq", f"train.loss_on={loss_on}")
        suite = build_suite(s, identify(s))
        batch = suite.collate([suite.train[i] for i in range(4)])
        is_labelled = batch["labels"] != IGNORE_INDEX
        expected = batch["attention_mask"].bool()
        if loss_on == "answer":
            prompts = torch.tensor([suite.train[i]["prompt"] for i in range(4)])
            expected &= torch.arange(expected.shape[1]) >= prompts[:, None]
        assert torch.equal(is_labelled, expected)
        assert torch.equal(batch["labels"][is_labelled], batch["input_ids"][is_labelled])
        losses[loss_on] = suite.evaluate("validation", load_decoder(s, weights_directory("pocket-llama")), Accelerator()).scores["loss"]
    assert abs(losses["all"] - losses["answer"]) > 0.05


def test_eval_steps_evaluate_at_multiples(tmp_path):
    record = run(settings_for(tmp_path, "commonsense/boolq", "train.num_evals=null", "train.eval_steps=2", "train.max_steps=5"))
    lines = [json.loads(line) for line in (tmp_path / "runs" / record["key"] / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [2, 4]
    assert record["best_checkpoint"]["step"] in (2, 4)


def test_mmlu_prompts_of_llama_factory(root, monkeypatch):
    """Each question has the dev examples in its own order, and every block ends in "Answer: "."""
    monkeypatch.setattr("qgoft.tasks.decoder.mmlu.read_descriptions", lambda subjects: {subject: f"{subject}:\n\n" for subject in subjects})
    s = settings_for(root, "instruct/mmlu")
    suite = build_suite(s, identify(s))
    five, zero = (suite._drawn_prompts(shots) for shots in (5, 0))
    row = suite.questions[0]
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    assert zero[0] == f"{row['subject']}:\n\n{row['question']}{choices}\nAnswer: "
    assert five[0].endswith(zero[0].removeprefix(f"{row['subject']}:\n\n"))
    assert five[0].count("\nAnswer: ") == 6
    same = [i for i, other in enumerate(suite.questions["subject"]) if other == row["subject"]]
    heads = {five[i].split("\nA. ")[0] for i in same}
    assert len(heads) > 1
    assert suite._drawn_prompts(5) == five
