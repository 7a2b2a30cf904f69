"""Loading of a backbone, with a head if the task needs one, by the classes of transformers."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from qgoft.config.settings import RunSettings, TrainSettings
from qgoft.errors import QgoftError
from qgoft.models.drop_path import set_drop_path


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    Raises:
        QgoftError: no readable tokenizer.
    """
    _check_special_tokens(directory)
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exceptions for damaged files
        raise QgoftError(f"{directory} has no readable tokenizer ({error}); complete the model directory") from error


def _check_special_tokens(directory: Path) -> None:
    """Raise if a special token is the empty string, with which a tokenizer loops forever.

    Raises:
        QgoftError: names the token.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            content = json.loads((directory / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # the tokenizer reports a missing file itself
        for token, value in content.items() if isinstance(content, dict) else ():
            text = value.get("content") if isinstance(value, dict) else value
            if token.endswith("_token") and text == "":
                raise QgoftError(f"{directory / name}: {token} is empty; set it to a token of the vocabulary, or remove it")


def check_fit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int, name: str) -> None:
    """Check that a model accepts the output of a tokenizer.

    Raises:
        QgoftError: the vocabulary exceeds the embedding, or rows may be longer than the position table.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    # A special token beyond the embedding that no row uses, such as that of an image, is common.
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} - set(tokenizer.all_special_ids)
    if any(number >= rows and number not in special for number in tokenizer.get_vocab().values()):
        raise QgoftError(
            f"the tokenizer of model={name} has {len(tokenizer):,} tokens and its embedding {rows:,} rows; they belong to different models"
        )
    for part, module in model.named_modules():
        if part.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            places = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            if max_length > places:
                raise QgoftError(f"train.max_length={max_length}: model={name} has {places} positions; reduce train.max_length")


def load_classifier(settings: RunSettings, directory: Path) -> PreTrainedModel:
    """Load a backbone with a new classification (or regression) head, float32, on the CPU (see `load_backbone`).

    Raises:
        QgoftError: the weights cannot be read, or do not fill the backbone.
    """
    task = settings.task
    changes = {"problem_type": "regression" if task.is_regression else "single_label_classification"}
    labels = 1 if task.is_regression else len(task.labels)
    return load_backbone(
        settings, directory, AutoModelForSequenceClassification, settings.model.head_modules, num_labels=labels, changes=changes
    )


def load_decoder(settings: RunSettings, directory: Path) -> PreTrainedModel:
    """Load a language model on the CPU (see `load_backbone`).

    Raises:
        QgoftError: the weights cannot be read, or do not fill the model.
    """
    model = load_backbone(settings, directory, AutoModelForCausalLM, [])
    # transformers would apply the decoding settings of generation_config.json (repetition penalty, beams, suppressed tokens) to answers.
    special = {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**special)
    return model


# Head of the BERT family: pretraining may have trained it, and it contains no task classes.
POOLER = "pooler"


def load_backbone(
    settings: RunSettings,
    directory: Path,
    auto_class: Any,
    head: list[str],
    *,
    num_labels: int | None = None,
    changes: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a backbone as one of transformers' task classes, with a new head if that has one, in `model.dtype`, on the CPU.

    The dtype is always passed: the published deberta-v3-base file is half precision and would load as such. With `model.init=random` the
    same architecture starts from random weights. The head is drawn from torch's random state.

    Args:
        auto_class: one of transformers' AutoModelFor classes.
        head: names of the modules that the weights need not fill.
        changes: further fields of the model's configuration.

    Raises:
        QgoftError: the weights cannot be read, or do not fill the backbone.
    """
    model = settings.model
    dtype = getattr(torch, model.dtype)
    try:
        labels = {} if num_labels is None else {"num_labels": num_labels}
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **labels)
    except Exception as error:
        raise QgoftError(f"config.json in {directory} cannot be read ({type(error).__name__}: {error}); fetch the model again") from error
    if type(config) not in auto_class._model_mapping.keys():  # noqa: SIM118 - not a dict
        raise QgoftError(
            f"model={model.name} is a {config.model_type}, which has no {auto_class.__name__.removeprefix('AutoModelFor')} model, as suite "
            f"{settings.task.suite} needs; change MODEL"
        )
    if auto_class is not AutoModelForCausalLM and not model.head_modules:
        raise QgoftError(
            f"model={model.name} has no head for suite {settings.task.suite}: its file in configs/model lists none; change MODEL"
        )
    for name, value in (changes or {}).items():
        setattr(config, name, value)
    _set_dropout(config, settings.train)
    if model.init == "random":
        built = auto_class.from_config(config, dtype=dtype, trust_remote_code=False)
    else:
        built = _fill(auto_class, directory, config, dtype, model.name, head)
    set_drop_path(built, settings.train.drop_path)
    return built


def _fill(auto_class: Any, directory: Path, config: Any, dtype: torch.dtype, name: str, head: list[str]) -> PreTrainedModel:
    """Load the weights of a directory into the architecture, and draw its head again."""
    try:
        # A head for other classes is fine, since it is replaced below. Mismatches of the backbone are reported after that.
        built, report = auto_class.from_pretrained(
            directory, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except Exception as error:  # safetensors, torch and transformers raise different exceptions for a damaged file
        raise QgoftError(f"the weights in {directory} cannot be read ({type(error).__name__}: {error}); fetch them again") from error
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    wrong = sorted(key for key in {*report["missing_keys"], *mismatched} if not any(part in head for part in key.split(".")))
    if wrong:
        raise QgoftError(
            f"the weights in {directory} do not fill the backbone of model={name}: {wrong[0]} is missing or has another shape "
            f"({len(wrong)} such); use the model that belongs to these weights"
        )
    surplus = surplus_layers(report["unexpected_keys"], [*dict(built.named_parameters()), *report["missing_keys"]])
    if surplus:
        raise QgoftError(
            f"the weights in {directory} have layers that config.json does not: {surplus[0]} ({len(surplus)} parameters in all); restore the "
            "configuration that belongs to these weights"
        )
    _renew(built, [part for part in head if part != POOLER], {*report["missing_keys"], *mismatched})
    return built


def surplus_layers(unexpected: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return the unexpected parameters that would belong to the model if it had more layers."""

    def spell(name: str) -> str:
        return re.sub(r"(?<=\.)\d+(?=\.)", "#", f".{name}")

    known = [spell(name) for name in own]
    # Weights may be saved with or without the name of the backbone.
    layers = {name[place:] for name in known if "#" in name for place in (0, name.find(".", 1))}
    return sorted(name for name in unexpected if "#" in spell(name) and any(spell(name).endswith(layer) for layer in layers))


def _renew(model: PreTrainedModel, head: list[str], drawn: set[str]) -> None:
    """Draw the head again if the file had one, so that another task's training does not enter a result.

    Args:
        drawn: names of the parameters that the file did not fill.
    """
    for name, module in model.named_modules():
        if not any(part in head for part in name.split(".")):
            continue
        loaded = [p for own, p in module.named_parameters(recurse=False) if f"{name}.{own}" not in drawn]
        for parameter in loaded:
            parameter._is_hf_initialized = False  # transformers draws no parameter twice
        if loaded:
            model._init_weights(module)


def _set_dropout(config: Any, train: TrainSettings) -> None:
    """Set dropout rates. transformers names the classifier's cls_dropout for DeBERTa, which has it without declaring it, and
    classifier_dropout elsewhere.

    Raises:
        QgoftError: the architecture has no such dropout, so that the setting would be ignored.
    """
    is_deberta = str(getattr(config, "model_type", "")).startswith("deberta")
    names = {"classifier_dropout": "cls_dropout" if is_deberta else "classifier_dropout", "hidden_dropout": "hidden_dropout_prob"}
    for setting, name in names.items():
        value = getattr(train, setting)
        if value is None:
            continue
        if not hasattr(config, name) and name != "cls_dropout":
            raise QgoftError(f"train.{setting}={value}: the architecture {config.model_type} has no {name}; set train.{setting}=null")
        setattr(config, name, value)
