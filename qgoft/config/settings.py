"""The resolved settings of one run. Standard library alone: scripts make them from Hydra, everything below takes them.

A field that moves a number takes part in the key of the record; those listed in `NOT_IN_KEY` do not.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgoft.errors import QgoftError


@dataclass(frozen=True)
class TaskSettings:
    """One task of a suite. `rows` are the official split sizes; a source that differs is marked a subset."""

    suite: str
    name: str
    version: int
    columns: list[str]
    labels: list[str]  # empty for a regression
    metrics: list[str]
    primary: str
    hub: str | None  # repository of the rows; null where none is certain
    config: str
    rows: dict[str, int]
    label_range: list[float] = field(default_factory=list)  # of a regression
    options: dict[str, Any] = field(default_factory=dict)  # what one suite alone needs, such as the overlap of SQuAD's windows
    path: str | None = None  # directory of this task, where its name is not the task's (VTAB)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # part -> where its file is, for tasks of several (decoders)

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class ModelSettings:
    """A backbone: shipped with the package (`pocket`) or in the hub's format, from `path` or else from the hub."""

    name: str
    source: str  # pocket or pretrained
    hub: str | None
    path: str | None
    revision: str
    init: str  # pretrained, or random: the control that shows what pretraining is worth
    head_modules: list[str]  # modules that are new for the task: trained with head_lr, left out of the published counts
    target_sets: dict[str, str]  # name of a choice of layers -> regular expression
    dtype: str = "float32"  # of the frozen weights; adapters are trained in float32


@dataclass(frozen=True)
class DataSettings:
    """Where the rows come from: generated (`pocket`), else a directory (`root`), else the hub."""

    source: str  # pocket or hub
    root: str | None
    revision: str


@dataclass(frozen=True)
class MethodSettings:
    """A method and its variant. `options` are what its config file sets beside the variant."""

    name: str
    variant: str
    targets: str
    penalty: float
    options: dict[str, Any] = field(default_factory=dict)
    lr_source: str = "own"  # where the recipe's learning rate comes from


@dataclass(frozen=True)
class TrainSettings:
    """Length and shape of training. One of `epochs` and `max_steps` must be set; with both, the earlier end counts."""

    epochs: float | None
    max_steps: int | None
    batch_size: int
    gradient_accumulation_steps: int
    eval_batch_size: int
    num_evals: int | None  # number of evaluations of the choosing part; null: once an epoch, or every `eval_steps`
    max_length: int
    mixed_precision: str  # no, bf16 or fp16
    gradient_checkpointing: bool
    classifier_dropout: float | None  # dropout before the classifier; null: the model's own
    hidden_dropout: float | None = None  # dropout of the hidden states; null: the model's own
    drop_path: float = 0.0  # stochastic depth of the last block; 0 at the first
    drop_last: bool = False  # leave out the last batch of an epoch where it is not full
    group_by_length: bool = False  # batches of rows of like length, in an order drawn by the seed
    holdout_rows: int = 0  # rows of training that only choose, where the data have no validation part (decoders)
    eval_steps: int | None = None  # steps between two evaluations, instead of `num_evals`
    loss_on: str = "answer"  # tokens of a decoder's loss: answer, or all (prompt too)


@dataclass(frozen=True)
class OptimSettings:
    """AdamW. `warmup` below 1 is a fraction of all optimiser steps, else a number of steps."""

    lr: float
    head_lr: float
    weight_decay: float
    warmup: float
    schedule: str  # linear, cosine or constant
    max_grad_norm: float | None
    min_lr: float = 0.0  # where the cosine ends, of the method's rate and of the head's
    weight_decay_on_biases: bool = True  # and norms, which transformers' Trainer leaves out
    warmup_rounding: str = "up"  # of a fraction of all steps: up, as transformers' Trainer, or down


@dataclass(frozen=True)
class JudgeSettings:
    """Who rates answers. `openai` is any endpoint that speaks its protocol; prices are per million tokens, for the estimate beforehand."""

    kind: str = "rule"
    model: str = "rule"  # pinned name of the judging model
    num_ratings: int = 1  # ratings of every answer; their median counts
    url: str = "https://api.openai.com/v1"
    timeout: float = 120.0
    retries: int = 5
    temperature: float | None = 0.0  # null: not sent
    max_tokens: int = 2048  # of a judgment
    token_field: str = "auto"  # name of that limit: max_tokens, max_completion_tokens, or auto: by the model's name
    system_role: bool = True  # false: the system prompt is sent in front of the user's
    price_input: float | None = None
    price_output: float | None = None


@dataclass(frozen=True)
class WandbSettings:
    mode: str = "disabled"
    project: str = "qgoft"


@dataclass(frozen=True)
class TensorBoardSettings:
    enabled: bool = False


@dataclass(frozen=True)
class ResultsSettings:
    root: str = "results"
    checkpoint_interval: float | None = 30.0  # between two checkpoints of a run; null: none


@dataclass(frozen=True)
class RunSettings:
    """Everything about one run."""

    protocol: str
    task: TaskSettings
    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    train: TrainSettings
    optim: OptimSettings
    eval_scheme: str  # one of EVAL_SCHEMES: what is reported, and what chooses
    selection: str
    seed: int
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    results: ResultsSettings = field(default_factory=ResultsSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("selection", self.selection, SELECTIONS),
            ("eval_scheme", self.eval_scheme, EVAL_SCHEMES),
            ("train.mixed_precision", self.train.mixed_precision, ("no", "bf16", "fp16")),
            ("train.loss_on", self.train.loss_on, ("answer", "all")),
            ("optim.schedule", self.optim.schedule, ("linear", "cosine", "constant")),
            ("optim.warmup_rounding", self.optim.warmup_rounding, ("up", "down")),
            ("model.init", self.model.init, ("pretrained", "random")),
            ("model.dtype", self.model.dtype, ("float32", "bfloat16", "float16")),
            ("judge.kind", self.judge.kind, ("rule", "openai")),
            ("judge.token_field", self.judge.token_field, ("auto", "max_tokens", "max_completion_tokens")),
            ("wandb.mode", self.wandb.mode, ("disabled", "offline", "online")),
        ):
            if value not in allowed:
                raise QgoftError(f"{name} is {value!r}; allowed are {', '.join(allowed)}; change {name}")
        for name, text in (
            ("protocol", self.protocol),
            ("task.suite", self.task.suite),
            ("task.name", self.task.name),
            ("method.name", self.method.name),
            ("method.variant", self.method.variant),
            ("model.name", self.model.name),
        ):
            if not NAME.fullmatch(text):
                raise QgoftError(f"{name} is {text!r}; letters, digits and _ . , @ + = - are allowed, 100 at most; change {name}")
        if self.train.epochs is None and self.train.max_steps is None:
            raise QgoftError("neither train.epochs nor train.max_steps is set; set one of them")
        for name, (low, high) in RANGES.items():
            node: Any = self
            for part in name.split("."):
                node = getattr(node, part)
            if node is not None and not low <= node <= high:
                raise QgoftError(f"{name} is {node}; allowed are {low:,} to {high:,}; change {name}")
        if self.train.max_length < SHORTEST and self.task.suite != "vtab":  # whose images have no length
            raise QgoftError(f"train.max_length is {self.train.max_length}; allowed are {SHORTEST} and more; change train.max_length")
        for name, number in (
            ("train.epochs", self.train.epochs),
            ("optim.max_grad_norm", self.optim.max_grad_norm),
            ("judge.timeout", self.judge.timeout),
        ):
            if number is not None and number <= 0:
                raise QgoftError(f"{name} is {number}; allowed are positive numbers; change {name}")
        for name, rate in (
            ("train.classifier_dropout", self.train.classifier_dropout),
            ("train.hidden_dropout", self.train.hidden_dropout),
            ("train.drop_path", self.train.drop_path),
        ):
            if rate is not None and not 0 <= rate < 1:
                raise QgoftError(f"{name} is {rate}; allowed are 0 and more, below 1; change {name}")
        if self.optim.min_lr and self.optim.schedule != "cosine":
            raise QgoftError(
                f"optim.min_lr={self.optim.min_lr} is where a cosine ends, and optim.schedule is {self.optim.schedule}; set optim.min_lr=0 or "
                "optim.schedule=cosine"
            )
        if self.model.dtype != "float32" and self.train.mixed_precision == "no" and self.task.suite not in DECODER_SUITES:
            raise QgoftError(
                f"model.dtype={self.model.dtype}: its head is trained in float32, and without autocast the two do not meet; set train.mixed_precision=bf16, or "
                "model.dtype=float32"
            )
        if self.selection == "best_validation" and self.eval_scheme in ("validation", "whole", "train800"):
            raise QgoftError(
                f"selection=best_validation has no rows left to choose on when eval_scheme={self.eval_scheme}; use selection=last, "
                "another eval_scheme, or selection=best_reported, which says so in the table"
            )
        suite_schemes = SUITE_EVAL_SCHEMES.get(self.task.suite, ("test", "halves", "seeded_halves", "validation"))
        if self.eval_scheme not in suite_schemes:
            raise QgoftError(
                f"eval_scheme is {self.eval_scheme!r}; suite {self.task.suite} has {', '.join(suite_schemes)}; change eval_scheme"
            )
        if self.train.holdout_rows and self.task.suite not in DECODER_SUITES:
            raise QgoftError(
                f"train.holdout_rows={self.train.holdout_rows} is for decoders ({', '.join(DECODER_SUITES)}); suite {self.task.suite} has rows of its own to "
                "choose on; leave it out"
            )
        if self.train.loss_on != "answer" and self.task.suite not in DECODER_SUITES:
            raise QgoftError(
                f"train.loss_on={self.train.loss_on} is for decoders ({', '.join(DECODER_SUITES)}); suite {self.task.suite} has no prompt; leave it out"
            )
        if self.train.eval_steps is not None and self.train.num_evals is not None:
            raise QgoftError(
                f"train.eval_steps={self.train.eval_steps} and train.num_evals={self.train.num_evals} exclude each other; set one of them to null"
            )
        if self.selection == "best_reported" and self.task.suite in DECODER_SUITES:
            raise QgoftError(f"selection=best_reported does not exist for suite {self.task.suite}; use last or best_validation")


# Names become file names, labels and words of commands.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+=-]{0,99}")
SHORTEST = 4  # tokens of a row: three special ones and a word
# Lowest and highest value of a number, where null does not stand for another one. Beyond, a value is a slip: it would be trained with.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # as numpy's
    "train.epochs": (0, 10_000),
    "train.max_steps": (1, 10**9),
    "train.batch_size": (1, 10**6),
    "train.gradient_accumulation_steps": (1, 10**6),
    "train.eval_batch_size": (1, 10**6),
    "train.num_evals": (1, 500),
    "train.eval_steps": (1, 10**9),
    "train.max_length": (0, 10**6),
    "train.holdout_rows": (0, 10**9),
    "optim.lr": (0, 1e30),
    "optim.head_lr": (0, 1e30),
    "optim.weight_decay": (0, 1_000),
    "optim.warmup": (0, 10**7),
    "optim.min_lr": (0, 1_000),
    "method.penalty": (0, 10**6),
    "judge.num_ratings": (1, 100),
    "judge.retries": (0, 100),
    "judge.temperature": (0, 2),
    "judge.max_tokens": (1, 10**6),
    "judge.price_input": (0, 10**6),
    "judge.price_output": (0, 10**6),
    "results.checkpoint_interval": (0, 10**6),
}
SELECTIONS = ("last", "best_validation", "best_reported")
EVAL_SCHEMES = ("test", "halves", "seeded_halves", "validation", "whole", "train800")
DECODER_SUITES = ("instruct", "math", "commonsense")
SUITE_EVAL_SCHEMES = {"vtab": ("test", "whole", "train800"), **dict.fromkeys(DECODER_SUITES, ("test",))}

# Places, logging and what the record states by content instead (a checksum of the data and of the weights).
NOT_IN_KEY = (
    "results",
    "wandb",
    "tensorboard",
    "data",
    "model.path",
    "model.hub",
    "model.revision",
    "train.eval_batch_size",
    "method.lr_source",
    "task.rows",
    "task.hub",
    "task.config",
    "task.path",
    "task.sources",
    "judge.url",
    "judge.timeout",
    "judge.retries",
    "judge.token_field",
    "judge.price_input",
    "judge.price_output",
)


# Settings added after records existed, with their earlier fixed value: at that value they are left out of the key.
DEFAULTS_NOT_IN_KEY: dict[str, Any] = {"judge.temperature": 0.0, "judge.max_tokens": 2048, "judge.system_role": True}


def affects_results(name: str) -> bool:
    """Whether a setting (train.max_steps), or a part of one, is none of NOT_IN_KEY."""
    return not any(f"{name}.".startswith(f"{place}.") for place in NOT_IN_KEY)


def settings_in_key(settings: RunSettings) -> dict[str, Any]:
    """The settings as plain data, without those that do not move a number."""
    data = dataclasses.asdict(settings)
    for name in NOT_IN_KEY:
        node, last = _parent(data, name)
        del node[last]
    for name, default in DEFAULTS_NOT_IN_KEY.items():
        node, last = _parent(data, name)
        if node[last] == default:
            del node[last]
    for group in ("method", "task"):  # null is the default of an option
        data[group]["options"] = {name: value for name, value in data[group]["options"].items() if value is not None}
    # The other target sets of a model decide nothing.
    data["model"]["target_sets"] = data["model"]["target_sets"].get(settings.method.targets)
    if settings.task.options.get("temperature"):  # answers are sampled with a seed for every batch
        data["train"]["eval_batch_size"] = settings.train.eval_batch_size
    return data


def settings_of_training(settings: RunSettings) -> dict[str, Any]:
    """The settings that decide what is trained, where several tasks are scored with one training (decoders)."""
    data = settings_in_key(settings)
    del data["task"]
    data["train"].pop("eval_batch_size", None)
    data.pop("judge", None)
    prompts = {name: settings.task.options.get(name) for name in ("train_columns", "train_prompt")}
    return {**data, "suite": settings.task.suite, **{name: value for name, value in prompts.items() if value is not None}}


def _parent(data: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, last = name.split(".")
    for part in path:
        data = data[part]
    return data, last


def settings_from_dict(data: dict[str, Any]) -> RunSettings:
    """Build `RunSettings` from plain data, refusing unknown names, missing names and wrong types.

    Raises:
        QgoftError: naming the setting, what came and what is allowed.
    """
    built: RunSettings = _build(RunSettings, data, "")
    return built


def settings_from_record(record: dict[str, Any]) -> RunSettings:
    """The settings that a record was made with; places are not among them."""
    data = {**record["settings"], "results": {}, "wandb": {}, "tensorboard": {}}
    return settings_from_dict(data)


def _build(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise QgoftError(f"{where or 'settings'} is {data!r}; a group of settings is needed")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise QgoftError(f"unknown setting {where}{unknown[0]}; allowed here are {', '.join(sorted(fields))}; remove or rename it")
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise QgoftError(f"setting {where}{name} is missing; set {where}{name}=...")
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, name + ".")
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(next(k for k in inner if k is not types.NoneType), value, name)
    if origin is list and isinstance(value, list):
        return [_convert(inner[0], item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(inner[1], item, f"{name}.{k}") for k, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise QgoftError(f"{name} is {value}; a finite number is needed; change {name}")
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    wanted = getattr(origin or kind, "__name__", str(kind))
    raise QgoftError(f"{name} is {value!r} of type {type(value).__name__}; a {wanted} is needed; change {name}")


def method_label(method: str, variant: str) -> str:
    """The spelling in tables and on the command line: lora@r8, and qgoft where there is nothing to choose."""
    return method if method == variant else f"{method}@{variant}"


def results_folder(settings: RunSettings) -> Path:
    """Where the run folders are."""
    return Path(settings.results.root) / "runs"
