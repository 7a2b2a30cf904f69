"""Typed settings of a run. `qgoft.config.compose` builds them with Hydra; everything else receives them.

A setting that affects results is part of the record's key; those of `NOT_IN_KEY` are not.
"""

import dataclasses
from dataclasses import field
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qgoft.config.constraints import POSITIVE, RATE, SIZE, STRICT, Bool, Float, Int, Name, Options, Str, between, one_of
from qgoft.config.suites import decoder_suites, suite_info
from qgoft.errors import QgoftError

SELECTIONS = ("last", "best_validation", "best_reported")
EVAL_SCHEMES = ("test", "halves", "seeded_halves", "validation", "whole", "train800")
# Shortest `train.max_length`: three special tokens and a word.
SHORTEST = 4
MAX_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True, config=STRICT)
class TaskSettings:
    """One task of a suite.

    Attributes:
        labels: names of the classes; empty for a regression, and for images and decoders.
        hub: repository of the rows; null if none is known.
        rows: official sizes of the splits; a source that differs is marked as a subset.
        label_range: lowest and highest label of a regression; empty for other tasks.
        options: settings of a single suite, such as the stride of SQuAD's windows.
        path: directory of the task, if it has another name (VTAB).
        sources: split -> location of its file, for tasks of several sources (decoders).
    """

    suite: Name
    name: Name
    version: Int
    columns: list[Str]
    labels: list[Str]
    metrics: list[Str]
    primary: Str
    hub: Str | None
    config: Str
    rows: dict[str, Int]
    label_range: list[Float] = field(default_factory=list)
    options: Options = field(default_factory=dict)
    path: Str | None = None
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_regression(self) -> bool:
        return bool(self.label_range)

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """A backbone: embedded in the package (`pocket`) or in the hub's format, from `path` or else from the hub.

    Attributes:
        source: pocket or pretrained.
        init: pretrained, or random for a control without pretraining.
        head_modules: modules that are new for the task: trained with head_lr, not part of the published counts.
        target_sets: name of a choice of layers -> regular expression.
        dtype: type of the frozen weights; adapters are trained in float32.
    """

    name: Name
    source: Str
    hub: Str | None
    path: Str | None
    revision: Str
    init: Annotated[Str, one_of("pretrained", "random")]
    head_modules: list[Str]
    target_sets: dict[str, Str]
    dtype: Annotated[Str, one_of("float32", "bfloat16", "float16")] = "float32"


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """Source of the rows: generated (`pocket`), or else a directory (`root`), or else the hub."""

    source: Str
    root: Str | None
    revision: Str


@dataclass(frozen=True, config=STRICT)
class MethodSettings:
    """A method and its variant.

    Attributes:
        penalty: weight of qGOFT's orthogonality penalty.
        options: further options of the method's config file.
        lr_source: source of the learning rate, as stated by the recipe.
    """

    name: Name
    variant: Name
    targets: Str
    penalty: Annotated[Float, between(0, 10**6)]
    options: Options = field(default_factory=dict)
    lr_source: Str = "own"


@dataclass(frozen=True, config=STRICT)
class TrainSettings:
    """Length and shape of training. At least one of `epochs` and `max_steps` is set; with both, training ends at the earlier one.

    Attributes:
        num_evals: number of evaluations on the validation split; null: once per epoch, or every `eval_steps`.
        classifier_dropout: null for that of the model.
        hidden_dropout: null for that of the model.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        drop_last: drop an incomplete last batch of an epoch.
        group_by_length: batches of rows of similar length, in an order that depends on the seed.
        holdout_rows: training rows for validation, if the data have no validation split (decoders).
        eval_steps: steps between two evaluations, instead of `num_evals`.
        loss_on: tokens of a decoder's loss: answer, or all.
    """

    epochs: Annotated[Float, between(0, 10_000), POSITIVE] | None
    max_steps: Annotated[Int, between(1, 10**9)] | None
    batch_size: Annotated[Int, SIZE]
    gradient_accumulation_steps: Annotated[Int, SIZE]
    eval_batch_size: Annotated[Int, SIZE]
    num_evals: Annotated[Int, between(1, 500)] | None
    max_length: Annotated[Int, between(0, 10**6)]
    mixed_precision: Annotated[Str, one_of("no", "bf16", "fp16")]
    gradient_checkpointing: Bool
    classifier_dropout: Annotated[Float, RATE] | None
    hidden_dropout: Annotated[Float, RATE] | None = None
    drop_path: Annotated[Float, RATE] = 0.0
    drop_last: Bool = False
    group_by_length: Bool = False
    holdout_rows: Annotated[Int, between(0, 10**9)] = 0
    eval_steps: Annotated[Int, between(1, 10**9)] | None = None
    loss_on: Annotated[Str, one_of("answer", "all")] = "answer"


@dataclass(frozen=True, config=STRICT)
class OptimSettings:
    """AdamW.

    Attributes:
        warmup: below 1 a fraction of all optimiser steps, otherwise a number of steps.
        min_lr: final learning rate of a cosine schedule.
        weight_decay_on_biases: also on norms; transformers' Trainer excludes both.
        warmup_rounding: rounding of a fraction of all steps: up, as transformers' Trainer, or down.
    """

    lr: Annotated[Float, between(0, 1e30)]
    head_lr: Annotated[Float, between(0, 1e30)]
    weight_decay: Annotated[Float, between(0, 1_000)]
    warmup: Annotated[Float, between(0, 10**7)]
    schedule: Annotated[Str, one_of("linear", "cosine", "constant")]
    max_grad_norm: Annotated[Float, POSITIVE] | None
    min_lr: Annotated[Float, between(0, 1_000)] = 0.0
    weight_decay_on_biases: Bool = True
    warmup_rounding: Annotated[Str, one_of("up", "down")] = "up"


@dataclass(frozen=True, config=STRICT)
class JudgeSettings:
    """Judge of generated answers.

    Attributes:
        kind: rule, or openai for any endpoint with its protocol.
        num_ratings: ratings per answer, of which the median counts.
        timeout: seconds.
        temperature: null to omit it from the request.
        max_tokens: limit of a judgment.
        token_field: name of that limit in the request: max_tokens, max_completion_tokens, or auto to choose by the model's name.
        system_role: false sends the system prompt as part of the user's.
        price_input: price per million tokens, for the estimate.
        price_output: price per million tokens, for the estimate.
    """

    kind: Annotated[Str, one_of("rule", "openai")] = "rule"
    model: Str = "rule"
    num_ratings: Annotated[Int, between(1, 100)] = 1
    url: Str = "https://api.openai.com/v1"
    timeout: Annotated[Float, POSITIVE] = 120.0
    retries: Annotated[Int, between(0, 100)] = 5
    temperature: Annotated[Float, between(0, 2)] | None = 0.0
    max_tokens: Annotated[Int, SIZE] = 2048
    token_field: Annotated[Str, one_of("auto", "max_tokens", "max_completion_tokens")] = "auto"
    system_role: Bool = True
    price_input: Annotated[Float, between(0, 10**6)] | None = None
    price_output: Annotated[Float, between(0, 10**6)] | None = None


@dataclass(frozen=True, config=STRICT)
class WandbSettings:
    """Logging to Weights & Biases."""

    mode: Annotated[Str, one_of("disabled", "offline", "online")] = "disabled"
    project: Str = "qgoft"


@dataclass(frozen=True, config=STRICT)
class TensorBoardSettings:
    """Logging to TensorBoard."""

    enabled: Bool = False


@dataclass(frozen=True, config=STRICT)
class ResultsSettings:
    """Output: directory, and seconds between two checkpoints of a run (null: none)."""

    root: Str = "results"
    checkpoint_interval: Annotated[Float, between(0, 10**6)] | None = 30.0


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """All settings of one run.

    Attributes:
        eval_scheme: reported and validation splits, one of EVAL_SCHEMES.
        selection: rule that selects the checkpoint, one of SELECTIONS.
    """

    protocol: Name
    task: TaskSettings
    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    train: TrainSettings
    optim: OptimSettings
    eval_scheme: Annotated[Str, one_of(*EVAL_SCHEMES)]
    selection: Annotated[Str, one_of(*SELECTIONS)]
    seed: Annotated[Int, between(0, MAX_SEED)]
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    results: ResultsSettings = field(default_factory=ResultsSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)

    def __post_init__(self) -> None:
        check_settings(self)


def setting_names() -> list[str]:
    """Return the names of all settings (train.max_steps)."""
    names: list[str] = []
    for one in dataclasses.fields(RunSettings):
        inner = dataclasses.fields(one.type) if dataclasses.is_dataclass(one.type) else ()
        names += [f"{one.name}.{field.name}" for field in inner] or [one.name]
    return names


def check_settings(s: RunSettings) -> None:
    """Check combinations of settings.

    Raises:
        QgoftError: a combination that does not work, or that would be ignored.
    """
    suite, train = suite_info(s.task.suite), s.train
    if train.epochs is None and train.max_steps is None:
        raise QgoftError("neither train.epochs nor train.max_steps is set; set one of them")
    if train.eval_steps is not None and train.num_evals is not None:
        raise QgoftError(
            f"train.eval_steps={train.eval_steps} and train.num_evals={train.num_evals} exclude each other; set one of them to null"
        )
    if train.max_length < SHORTEST and suite.kind != "vision":
        raise QgoftError(f"train.max_length is {train.max_length}; allowed are {SHORTEST} and more; change train.max_length")
    if s.optim.min_lr and s.optim.schedule != "cosine":
        raise QgoftError(
            f"optim.min_lr={s.optim.min_lr} is the end of a cosine, and optim.schedule is {s.optim.schedule}; set optim.min_lr=0 or "
            "optim.schedule=cosine"
        )
    if s.model.dtype != "float32" and train.mixed_precision == "no" and not suite.is_decoder:
        raise QgoftError(
            f"model.dtype={s.model.dtype}: the head is trained in float32, which needs autocast; set train.mixed_precision=bf16 or "
            "model.dtype=float32"
        )
    _check_evaluation(s)
    if suite.is_decoder:
        return
    decoders = ", ".join(decoder_suites())
    if train.holdout_rows:
        raise QgoftError(
            f"train.holdout_rows={train.holdout_rows} is for decoders ({decoders}); suite {s.task.suite} has a validation split; omit it"
        )
    if train.loss_on != "answer":
        raise QgoftError(f"train.loss_on={train.loss_on} is for decoders ({decoders}); suite {s.task.suite} has no prompt; omit it")


def _check_evaluation(s: RunSettings) -> None:
    suite = suite_info(s.task.suite)
    if s.selection == "best_validation" and s.eval_scheme in ("validation", "whole", "train800"):
        raise QgoftError(
            f"selection=best_validation: eval_scheme={s.eval_scheme} leaves no rows for validation; use selection=last, another eval_scheme, or "
            "selection=best_reported, which is marked in the table"
        )
    if s.eval_scheme not in suite.eval_schemes:
        raise QgoftError(f"eval_scheme is {s.eval_scheme!r}; suite {s.task.suite} has {', '.join(suite.eval_schemes)}; change eval_scheme")
    if s.selection == "best_reported" and suite.is_decoder:
        raise QgoftError(f"selection=best_reported does not exist for suite {s.task.suite}; use last or best_validation")


def settings_from_dict(data: dict[str, Any]) -> RunSettings:
    """Build settings from plain data.

    Raises:
        QgoftError: an unknown or missing name, a wrong type or an invalid value; one line.
    """
    if not isinstance(data, dict):
        raise QgoftError(f"settings is {data!r}; a group of settings is needed")
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise QgoftError(one_line_error(error, RunSettings)) from None


_ADAPTER = TypeAdapter(RunSettings)
# Error type of pydantic -> expected type.
_EXPECTED = {"int_type": "int", "float_type": "float", "string_type": "str", "bool_type": "bool", "list_type": "list", "dict_type": "dict"}


def one_line_error(errors: ValidationError, settings: Any, prefix: str = "") -> str:
    """Return the first error as `setting is value; expected; fix`.

    Args:
        settings: the dataclass of the settings.
        prefix: of the names on the command line.
    """
    error = errors.errors(include_url=False)[0]
    kind, value, path = error["type"], error["input"], list(error["loc"])
    name = prefix + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if kind == "missing":
        return f"setting {name} is missing; set {name}=..."
    if kind == "unexpected_keyword_argument":
        group: Any = settings
        for part in path[:-1]:
            group = group.__dataclass_fields__[part].type
        known = ", ".join(sorted(one.name for one in dataclasses.fields(group)))
        return f"unknown setting {name}; allowed here are {known}; remove or rename it"
    if kind == "range":
        return f"{name} is {value if isinstance(value, int | float) else repr(value)}; {error['msg']}; change {name}"
    if kind == "finite_number":
        option = error.get("ctx", {})
        where, number = (f"{name}.{option['option']}", option["number"]) if "option" in option else (name, value)
        return f"{where} is {number}; a finite number is needed; change {where}"
    if kind in ("dataclass_type", "dataclass_exact_type"):
        return f"{name} is {value!r}; a group of settings is needed"
    return f"{name} is {value!r} of type {type(value).__name__}; a {_EXPECTED.get(kind, kind)} is needed; change {name}"


def settings_from_record(record: dict[str, Any]) -> RunSettings:
    """Return the settings of a record; it contains no locations."""
    return settings_from_dict({**record["settings"], "results": {}, "wandb": {}, "tensorboard": {}})


def method_label(method: str, variant: str) -> str:
    """Return the label of a method in tables and on the command line: lora@r8, or qgoft if it has one variant."""
    return method if method == variant else f"{method}@{variant}"
