"""How much work the items of protocols with real data are: runs, training steps, floating-point operations, hours of one GPU. An estimate.

    python -m qgoft estimate                  all items; protocol small in hours of a CPU core
    python -m qgoft estimate --speed 40 200   another GPU: 10^12 operations a second that it keeps up in float32 and in bfloat16

Operations are those of the linear layers and of attention: 2 a weight and token forward, as many backward, and as many again where weights
are trained; an adapter's own are left out (`make bench`: GOFT and qGOFT step in about LoRA's time). A step takes STEP_SECONDS at least,
what launching its kernels takes. Answers are written at a tenth of the speed, and all at their full length. `--write` keeps the estimate in results/published/hours.json, where
the report reads it.
"""

import argparse
import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

from qgoft.cli import Parser
from qgoft.commands.items import compose_parts, own_items, plan_items
from qgoft.config.compose import REPOSITORY, model_files
from qgoft.config.settings import DECODER_SUITES, RunSettings
from qgoft.models.architectures import build_shapes
from qgoft.report.table import Table, terminal_width
from qgoft.sweep.plan import ItemFilter
from qgoft.train.optim import count_steps, evaluation_steps
from qgoft.train.run import MODE_OF_SCORES

PROTOCOLS = ("goft_icml24", "psoft_iclr26", "small")
HOURS = REPOSITORY / "results" / "published" / "hours.json"
# Tokens a row: on average, and of the longest of 32 rows, to which a batch of any rows is filled up. From real rows (GSM8K's for math,
# BoolQ's and PIQA's for commonsense, of MMLU both ways of asking), in word pieces of a vocabulary of 30,000.
WIDTHS = {
    "glue/cola": (12, 24), "glue/sst2": (13, 40), "glue/mrpc": (53, 80), "glue/stsb": (30, 72), "glue/rte": (70, 182), "glue/qnli": (50, 101),
    "glue/qqp": (31, 70), "glue/mnli": (40, 95), "squad": (160, 328), "vtab": (197, 197), "instruct": (200, 460), "math": (200, 340),
    "commonsense": (120, 250),
}  # fmt: skip
MMLU_TOKENS = 130 + 700
# Sustained by a GPU of the A100's class: float32 without TF32, and bfloat16. 10^12 operations a second.
SPEED = (12.0, 100.0)
STEP_SECONDS = 0.06
# Of one CPU core, and the encoder of protocol small: six blocks 384 wide. LoRA's runs on MRPC kept up this speed.
CORE_SPEED = 0.07
SMALL = "small"
WRITING = 0.1


@dataclass(frozen=True)
class Architecture:
    weights: int  # of the linear layers that every token passes
    attention: int  # layers times width

    @classmethod
    @functools.cache
    def of(cls, name: str) -> "Architecture":
        """By the name that runs know it by."""
        if name == "minilm-l6":
            return cls(6 * (4 * 384**2 + 2 * 384 * 1536), 6 * 384)
        model = build_shapes(model_files()[name])
        config = model.config
        weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        return cls(weights, config.num_hidden_layers * config.hidden_size)

    def forward(self, tokens: float, width: float) -> float:
        """Operations for some tokens in rows of a width: a product with every weight, and two of attention over the row."""
        return tokens * (2 * self.weights + 4 * width * self.attention)


@dataclass(frozen=True)
class Work:
    runs: int = 0
    steps: int = 0
    petaflop: float = 0.0
    hours: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.runs + other.runs, self.steps + other.steps, self.petaflop + other.petaflop, self.hours + other.hours)


Estimate = dict[str, dict[str, dict[str, Work]]]


def width_of(settings: RunSettings) -> tuple[float, float]:
    task, longest = settings.task, settings.train.max_length or 10_000
    mean, of_batch = WIDTHS[task.full_name if task.suite == "glue" else task.suite]
    return min(mean, longest), min(mean if settings.train.group_by_length else of_batch, longest)


def rate_of(settings: RunSettings, speed: tuple[float, float]) -> float:
    """Operations a second."""
    return (CORE_SPEED if settings.protocol == SMALL else speed[settings.train.mixed_precision != "no"]) * 1e12


def training(settings: RunSettings, model: Architecture, speed: tuple[float, float]) -> Work:
    """The steps of a run, with its looks at the choosing part."""
    train, rows = settings.train, settings.task.rows
    mean, width = width_of(settings)
    part = "train" if settings.task.suite != "vtab" else "train800val200" if settings.eval_scheme == "whole" else "train800"
    whole, rest = divmod(rows[part], train.batch_size)
    steps, per_epoch = count_steps(train, whole + (rest > 0 and not train.drop_last))
    passes = {"full": 3, "linear": 1}.get(settings.method.name, 2)
    a_step = model.forward(train.batch_size * train.gradient_accumulation_steps * width, width) * passes
    looks = 0 if MODE_OF_SCORES[settings.selection] is None else len(evaluation_steps(train, steps, per_epoch))
    scored = sum(number for name, number in rows.items() if name.startswith("val")) / (2 if settings.eval_scheme.endswith("halves") else 1)
    scored += train.holdout_rows
    looking = looks * model.forward(scored * mean, mean)
    rate = rate_of(settings, speed)
    seconds = steps * max(a_step / rate, 0.0 if settings.protocol == SMALL else STEP_SECONDS) + looking / rate
    return Work(0, steps, (steps * a_step + looking) / 1e15, seconds / 3600)


def reporting(settings: RunSettings, model: Architecture, speed: tuple[float, float]) -> Work:
    """The reported part, once: read, or for decoders answered."""
    task, rows = settings.task, settings.task.rows
    mean, _ = width_of(settings)
    rate = rate_of(settings, speed)
    if task.full_name == "instruct/mmlu":
        flop = model.forward(rows["test"] * MMLU_TOKENS, MMLU_TOKENS)
        return Work(1, 0, flop / 1e15, flop / rate / 3600)
    names = ("test", "question") if task.suite in (*DECODER_SUITES, "vtab") else "val"
    parts = [number for name, number in rows.items() if name.startswith(names)]
    flop = model.forward(sum(parts) * mean, mean)
    written = model.forward(sum(parts) * int(task.options.get("new_tokens", 0)) * int(task.options.get("num_beams", 1)), mean)
    return Work(1, 0, (flop + written) / 1e15, (flop + written / WRITING) / rate / 3600)


def work_by_task(runs: Iterable[RunSettings], speed: tuple[float, float]) -> dict[str, Work]:
    """Task -> its runs. Tasks of a decoder suite share a training, which counts for the first of them."""
    found: dict[str, Work] = defaultdict(Work)
    trained = set()
    for settings in runs:
        model = Architecture.of(settings.model.name)
        place = (settings.method, settings.optim, settings.model.name, settings.seed)
        shared = repr(place if settings.task.suite in DECODER_SUITES else (*place, settings.task.full_name))
        if shared not in trained and settings.method.name != "base":
            found[settings.task.full_name] += training(settings, model, speed)
        trained.add(shared)
        found[settings.task.full_name] += reporting(settings, model, speed)
    return dict(found)


def total(tasks: Mapping[str, Work]) -> Work:
    return sum(tasks.values(), Work())


def estimate(speed: tuple[float, float], jobs: int, items: Sequence[str] = (), protocols: Sequence[str] = PROTOCOLS) -> Estimate:
    """Protocol -> item (all, where none is named) -> task -> its work."""
    found: Estimate = {}
    for protocol in protocols:
        names = items or ["all", *own_items(protocol)]
        parts = [part for part in plan_items(names, ItemFilter(protocol)) if part.item.bench is None]
        for part, cells in zip(parts, compose_parts(parts, jobs), strict=True):
            found.setdefault(protocol, {})[part.item.name] = work_by_task((cell.settings for cell in cells), speed)
    return found


def build_table(found: Estimate, speed: tuple[float, float]) -> Table:
    table = Table("hours", "work of the items (estimated)", ["item", "protocol", "runs", "steps", "PFLOP", "hours"])
    for protocol, items in found.items():
        table.rules_before.append(len(table.rows))
        for name, tasks in items.items():
            work = total(tasks)
            table.rows.append([name, protocol, f"{work.runs:,}", f"{work.steps:,}", f"{work.petaflop:,.0f}", f"{work.hours:,.0f}"])
    table.notes = [
        f"one GPU that keeps up {speed[0]:g} TFLOP/s in float32 and {speed[1]:g} in bfloat16, {STEP_SECONDS * 1000:g} ms a step at least; protocol small: "
        f"one CPU core of {CORE_SPEED:g}",
        "runs that two items share are counted in both; scripts/hours.py says what is left out",
    ]
    return table


def main(words: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, nargs=2, default=SPEED, metavar=("FLOAT32", "BFLOAT16"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="keep the estimate")
    arguments = parser.parse_args(words)
    speed = (arguments.speed[0], arguments.speed[1])
    found = estimate(speed, arguments.jobs)
    print(build_table(found, speed).terminal(terminal_width()))
    if arguments.write:
        kept = {protocol: {name: asdict(total(tasks)) for name, tasks in items.items()} for protocol, items in found.items()}
        a_run = {
            protocol: {name: {task: work.hours / work.runs for task, work in tasks.items()} for name, tasks in items.items()}
            for protocol, items in found.items()
        }
        HOURS.write_text(
            json.dumps(
                {"speed": speed, "step_seconds": STEP_SECONDS, "core_speed": CORE_SPEED, "work": kept, "hours_a_run": a_run}, indent=1
            )
            + "\n"
        )
    return 0
