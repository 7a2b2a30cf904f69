"""MMLU of real decoders by lm-eval: its prompt and its scorer, on the checksummed rows of the run.

Its subject groups are not used (see mmlu_groups.py).
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from qgoft.errors import QgoftError, check_choice, format_exception
from qgoft.tasks.evaluate import evaluating

STOCK = "_default_template_yaml"
# Metrics of a task in order of preference; the first is PEFT-Arena's for ifeval.
PREFERRED = ("inst_level_strict_acc", "exact_match", "acc_norm", "acc", "f1")


def find_tasks() -> Path:
    """Return lm-eval's directory of MMLU subjects.

    Raises:
        QgoftError: lm-eval is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise QgoftError(
            f"MMLU of a real decoder needs lm-eval ({error}); `make mmlu` installs it, or: pip install -e '.[mmlu]'"
        ) from error
    return Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"


def read_descriptions(subjects: Iterable[str]) -> dict[str, str]:
    """Return subject -> first line of its prompt, from lm-eval's package.

    Raises:
        QgoftError: lm-eval is not installed.
    """
    directory = find_tasks()
    return {subject: yaml.safe_load((directory / f"mmlu_{subject}.yaml").read_text())["description"] for subject in subjects}


def harness_answers(
    questions: Dataset,
    examples: dict[str, list[dict[str, Any]]],
    shots: int,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> list[int]:
    """Return the index of the most likely choice of every question, in their order.

    Args:
        questions: rows of MMLU's test split.
        examples: subject -> rows of the dev split; the first `shots` of them precede a question.

    Raises:
        QgoftError: lm-eval is not installed.
    """
    directory = find_tasks()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    subjects = list(questions["subject"])
    numbers: dict[str, list[int]] = {}
    for number, subject in enumerate(subjects):
        numbers.setdefault(subject, []).append(number)
    with tempfile.TemporaryDirectory() as scratch, evaluating(model):
        tasks = [_task(directory, subject, questions.select(rows), examples[subject], Path(scratch)) for subject, rows in numbers.items()]
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=tasks,
            num_fewshot=shots,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=TaskManager(include_defaults=False),
        )
    answers = [-1] * len(questions)
    for subject, rows in numbers.items():
        for sample in found["samples"][f"mmlu_{subject}"]:
            scores = [score for score, _ in sample["filtered_resps"]]
            answers[rows[sample["doc_id"]]] = max(range(len(scores)), key=scores.__getitem__)
    assert -1 not in answers
    return answers


def _task(directory: Path, subject: str, questions: Dataset, examples: list[dict[str, Any]], scratch: Path) -> dict[str, Any]:
    """Return the stock configuration of a subject, reading local rows instead of the hub."""
    own = yaml.safe_load((directory / f"mmlu_{subject}.yaml").read_text())
    config = {**yaml.safe_load((directory / STOCK).read_text()), **own}
    files = {"dev": scratch / f"{subject}-dev.parquet", "test": scratch / f"{subject}-test.parquet"}
    Dataset.from_list(examples).to_parquet(files["dev"])
    questions.to_parquet(files["test"])
    for name in ("include", "dataset_name", "tag"):
        config.pop(name, None)
    # Answers are stored as numbers; lm-eval treats them like the class labels of the hub's files.
    return {**config, "dataset_path": "parquet", "dataset_kwargs": {"data_files": {split: str(path) for split, path in files.items()}}}


def task_version(name: str) -> str:
    """Return the version of lm-eval that has a task.

    Raises:
        QgoftError: lm-eval has no such task.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    check_choice("task of lm-eval", name, TaskManager().all_tasks, "`lm-eval ls tasks` lists them")
    return str(lm_eval.__version__)


def evaluate_task(name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[float, float | None, int, bool]:
    """Return (value, standard error, number of items, whether higher is better) of a task of lm-eval; shares in percent.

    Raises:
        QgoftError: its rows are not available.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with evaluating(model):
        try:
            found = lm_eval.simple_evaluate(model=HFLM(pretrained=model, tokenizer=tokenizer), tasks=[name])
        except (OSError, ValueError) as error:  # the rows come from the hub
            raise QgoftError(f"lm-eval cannot run {name}: {format_exception(error)}") from error
    results = found["results"][name]
    measured = {key.partition(",")[0]: value for key, value in results.items() if isinstance(value, float) and "_stderr" not in key}
    metric = next((one for one in PREFERRED if one in measured), next(iter(measured)))
    spread = next((value for key, value in results.items() if key.startswith(f"{metric}_stderr") and isinstance(value, float)), None)
    count = sum(one["effective"] for one in found["n-samples"].values())
    higher = bool(found.get("higher_is_better", {}).get(name, {}).get(metric, True))
    unit = 100.0 if 0 <= measured[metric] <= 1 and higher else 1.0
    return unit * measured[metric], None if spread is None else unit * spread, count, higher
