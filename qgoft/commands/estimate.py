"""Estimate the work of the items of protocols with real data: runs, training steps, floating-point operations, GPU hours.

    python -m qgoft estimate                  all items; protocol small in hours of a CPU core
    python -m qgoft estimate --speed 40 200   another GPU: sustained TFLOP/s in float32 and in bfloat16

torch's FlopCounterMode counts a forward pass of the frozen model; a backward pass costs as much, and as much again if weights are trained.
Adapters are not included (`make bench`: GOFT and qGOFT take about LoRA's time per step). A step takes at least STEP_SECONDS, the time to
launch its kernels. Answers are generated at a tenth of the speed, and all at their maximum length. `--write` stores the estimate
in results/published/hours.json, which the report reads.
"""

import argparse
import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTForImageClassification

from qgoft.cli import Parser
from qgoft.config.compose import model_files
from qgoft.config.locations import PUBLISHED
from qgoft.config.settings import RunSettings
from qgoft.config.suites import suite_info
from qgoft.models.architectures import build_shapes
from qgoft.report.table import Table, terminal_width
from qgoft.sweep.items import ItemFilter, compose_plans, own_items, plan_items
from qgoft.train.optim import count_steps, evaluation_steps
from qgoft.train.run import SELECTION_SPLIT

PROTOCOLS = ("goft_icml24", "psoft_iclr26", "small")
HOURS = PUBLISHED / "hours.json"
# Tokens per question of MMLU, without and with five examples.
MMLU_TOKENS = 130 + 700
# Sustained TFLOP/s of a GPU of the A100 class: float32 without TF32, and bfloat16.
SPEED = (12.0, 100.0)
# Shortest duration of a step on a GPU, in seconds.
STEP_SECONDS = 0.06
# Sustained TFLOP/s of one CPU core with the encoder of protocol small, as in LoRA's runs on MRPC.
CORE_SPEED = 0.07
SMALL = "small"
# Speed of generation relative to reading.
GENERATION = 0.1


@dataclass(frozen=True)
class ForwardCost:
    """Operations of a model's forward pass: batch + rows * (row + token * length + pair * length ** 2).

    Attributes:
        batch: per batch (DeBERTa projects its relative positions once).
        row: per row (pooler and head of an encoder).
        token: per token.
        pair: per pair of tokens (attention).
    """

    batch: float
    row: float
    token: float
    pair: float

    @classmethod
    @functools.cache
    def of(cls, name: str) -> "ForwardCost":
        """Count the operations of a model (name in settings) by torch's FlopCounterMode on the meta device."""
        model = build_shapes(model_files()[name]).eval()
        config: Any = model.config
        config.pad_token_id = None  # otherwise transformers reads the tokens, which the meta device cannot
        if isinstance(model, ViTForImageClassification):  # images have one size
            one, two = (_count(model, torch.zeros(rows, 3, 224, 224, device="meta")) for rows in (1, 2))
            return cls(2 * one - two, two - one, 0, 0)
        tokens = torch.zeros(2, 256, dtype=torch.long, device="meta")
        one, two = (_count(model, tokens[:rows, :64]) for rows in (1, 2))
        batch = 2 * one - two
        at_64, at_128, at_256 = (_count(model, tokens[:1, :length]) - batch for length in (64, 128, 256))
        # the quadratic through three points
        pair = ((at_256 - at_128) / 128 - (at_128 - at_64) / 64) / (256 - 64)
        token = (at_128 - at_64) / 64 - pair * (128 + 64)
        return cls(batch, at_64 - 64 * token - 64**2 * pair, token, pair)

    def forward(self, rows: float, length: float, batches: float = 1) -> float:
        """Return the operations of a forward pass over rows of a length (tokens), in some batches."""
        return batches * self.batch + rows * (self.row + self.token * length + self.pair * length**2)

    def generate(self, tokens: float, length: float) -> float:
        """Return the operations of generating tokens, each of which attends to `length` others."""
        return tokens * (self.token + self.pair * length)


def _count(model: nn.Module, inputs: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Work:
    """Estimated work."""

    runs: int = 0
    steps: int = 0
    petaflop: float = 0.0
    hours: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.runs + other.runs, self.steps + other.steps, self.petaflop + other.petaflop, self.hours + other.hours)


# Protocol -> item -> task -> work.
Estimate = dict[str, dict[str, dict[str, Work]]]


def row_lengths(settings: RunSettings) -> tuple[float, float]:
    """Return the tokens per row on average, and of the longest row of a batch, to which it is padded."""
    tokens = suite_info(settings.task.suite).tokens
    mean, longest = tokens.get(settings.task.name) or tokens["all"]
    limit = settings.train.max_length or 10_000
    return min(mean, limit), min(mean if settings.train.group_by_length else longest, limit)


def operations_per_second(settings: RunSettings, speed: tuple[float, float]) -> float:
    """Return the sustained speed of the hardware of a run."""
    return (CORE_SPEED if settings.protocol == SMALL else speed[settings.train.mixed_precision != "no"]) * 1e12


def training_work(settings: RunSettings, model: ForwardCost, speed: tuple[float, float]) -> Work:
    """Return the work of the steps of a run and of its evaluations on the validation split."""
    train, rows = settings.train, settings.task.rows
    mean, length = row_lengths(settings)
    split = "train" if settings.task.suite != "vtab" else "train800val200" if settings.eval_scheme == "whole" else "train800"
    full, rest = divmod(rows[split], train.batch_size)
    steps, per_epoch = count_steps(train, full + (rest > 0 and not train.drop_last))
    passes = {"full": 3, "linear": 1}.get(settings.method.name, 2)
    batches = train.gradient_accumulation_steps
    per_step = model.forward(train.batch_size * batches, length, batches) * passes
    evaluations = 0 if SELECTION_SPLIT[settings.selection] is None else len(evaluation_steps(train, steps, per_epoch))
    scored = sum(number for name, number in rows.items() if name.startswith("val")) / (2 if settings.eval_scheme.endswith("halves") else 1)
    scored += train.holdout_rows
    evaluating = evaluations * model.forward(scored, mean, scored / train.eval_batch_size)
    rate = operations_per_second(settings, speed)
    seconds = steps * max(per_step / rate, 0.0 if settings.protocol == SMALL else STEP_SECONDS) + evaluating / rate
    return Work(0, steps, (steps * per_step + evaluating) / 1e15, seconds / 3600)


def scoring_work(settings: RunSettings, model: ForwardCost, speed: tuple[float, float]) -> Work:
    """Return the work of scoring the reported split once, with generated answers for decoders."""
    task, rows = settings.task, settings.task.rows
    mean, _ = row_lengths(settings)
    rate = operations_per_second(settings, speed)
    if task.full_name == "instruct/mmlu":
        flop = model.forward(rows["test"], MMLU_TOKENS)
        return Work(1, 0, flop / 1e15, flop / rate / 3600)
    has_test_split = task.suite == "vtab" or suite_info(task.suite).is_decoder
    names = ("test", "question") if has_test_split else "val"
    scored = sum(number for name, number in rows.items() if name.startswith(names))
    flop = model.forward(scored, mean, scored / settings.train.eval_batch_size)
    generated = model.generate(scored * int(task.options.get("new_tokens", 0)) * int(task.options.get("num_beams", 1)), mean)
    return Work(1, 0, (flop + generated) / 1e15, (flop + generated / GENERATION) / rate / 3600)


def work_by_task(runs: Iterable[RunSettings], speed: tuple[float, float]) -> dict[str, Work]:
    """Return task -> work of its runs. The training that the tasks of a decoder suite share counts for the first of them."""
    found: dict[str, Work] = defaultdict(Work)
    trained = set()
    for settings in runs:
        model = ForwardCost.of(settings.model.name)
        place = (settings.method, settings.optim, settings.model.name, settings.seed)
        shared = repr(place if suite_info(settings.task.suite).is_decoder else (*place, settings.task.full_name))
        if shared not in trained and settings.method.name != "base":
            found[settings.task.full_name] += training_work(settings, model, speed)
        trained.add(shared)
        found[settings.task.full_name] += scoring_work(settings, model, speed)
    return dict(found)


def total(tasks: Mapping[str, Work]) -> Work:
    """Return the sum over tasks."""
    return sum(tasks.values(), Work())


def estimate(speed: tuple[float, float], jobs: int, items: Sequence[str] = (), protocols: Sequence[str] = PROTOCOLS) -> Estimate:
    """Return the work of some items (all, if none are named) under some protocols."""
    found: Estimate = {}
    for protocol in protocols:
        names = items or ["all", *own_items(protocol)]
        plans = [plan for plan in plan_items(names, ItemFilter(protocol)) if plan.item.bench is None]
        for plan, runs in zip(plans, compose_plans(plans, jobs), strict=True):
            found.setdefault(protocol, {})[plan.item.name] = work_by_task((run.settings for run in runs), speed)
    return found


def build_table(found: Estimate, speed: tuple[float, float]) -> Table:
    """Return the table of an estimate."""
    table = Table("hours", "work of the items (estimated)", ["item", "protocol", "runs", "steps", "PFLOP", "hours"])
    for protocol, items in found.items():
        table.rules_before.append(len(table.rows))
        for name, tasks in items.items():
            work = total(tasks)
            table.rows.append([name, protocol, f"{work.runs:,}", f"{work.steps:,}", f"{work.petaflop:,.0f}", f"{work.hours:,.0f}"])
    table.notes = [
        f"one GPU at {speed[0]:g} TFLOP/s in float32 and {speed[1]:g} in bfloat16, at least {STEP_SECONDS * 1000:g} ms per step; protocol small: one "
        f"CPU core at {CORE_SPEED:g}",
        "runs that two items share count in both; python -m qgoft estimate --help lists what is not included",
    ]
    return table


def write_hours(found: Estimate, speed: tuple[float, float]) -> None:
    """Store an estimate for the report."""
    items = {(protocol, name): tasks for protocol, names in found.items() for name, tasks in names.items()}
    work: dict[str, dict[str, object]] = defaultdict(dict)
    per_run: dict[str, dict[str, object]] = defaultdict(dict)
    for (protocol, name), tasks in items.items():
        work[protocol][name] = asdict(total(tasks))
        per_run[protocol][name] = {task: done.hours / done.runs for task, done in tasks.items()}
    stored = {"speed": speed, "step_seconds": STEP_SECONDS, "core_speed": CORE_SPEED, "work": work, "hours_a_run": per_run}
    HOURS.write_text(json.dumps(stored, indent=1) + "\n")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, nargs=2, default=SPEED, metavar=("FLOAT32", "BFLOAT16"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="store the estimate in results/published/hours.json")
    arguments = parser.parse_args(argv)
    speed = (arguments.speed[0], arguments.speed[1])
    found = estimate(speed, arguments.jobs)
    print(build_table(found, speed).terminal(terminal_width()))
    if arguments.write:
        write_hours(found, speed)
    return 0
