"""Interleaved timing: every repeat runs all contenders once, so that a slow moment of a shared machine affects all of them. On whole models
every contender has its own process, because the C library's memory management depends on the history of a process.

The reported figure is the ratio to LoRA r=8 within a repeat (qgoft.report.bench).
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from qgoft.bench.contenders import CONTENDERS, PRODUCTS, REFERENCE, Contender, pass_gradients_below, product_inputs, put_on
from qgoft.bench.memory import peak_bytes, saved_bytes
from qgoft.bench.shapes import Shape
from qgoft.config.settings import MethodSettings
from qgoft.methods.registry import Penalty, method_named, parse_variant
from qgoft.ops.givens import build_factors

PENALTY = 0.01
# Methods that take turns with the reference: more would put minutes between their steps.
GROUP = 3
LONG_STEP = 1.0  # seconds
Report = Callable[[str], None]


@dataclass
class Timing:
    """One contender on one shape: seconds of every repeat, bytes saved for backward, and peak bytes of a step including weights.

    Forward includes the penalty, if any; update is AdamW, the method's after_step, and clearing the gradients.
    """

    name: str
    trainable: int
    batch: int
    saved_bytes: int
    peak_bytes: int
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


class Runner:
    """A contender on a module, ready to step."""

    def __init__(
        self, contender: Contender, base: nn.Module, shape: Shape, inputs: dict[str, Tensor], device: str, *, counts_bytes: bool = True
    ):
        self.module = put_on(contender, base, shape)
        pass_gradients_below(self.module, shape)
        self.base, self.inputs, self.device = base, inputs, device
        free = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(free, 1e-4, fused=True) if free else None
        self.after_step, self.penalty, self.weight = _asked_of_a_step(contender)
        self.count = 0
        size = next(iter(inputs.values())).shape[0]
        # One step of a slow method is long enough.
        self.steps = 1 if sum(self.step()) > LONG_STEP else shape.steps
        # The peak of the second step: from then on gradients and the optimiser state exist.
        peak = peak_bytes(self._alive(), self.step, device) if counts_bytes else 0
        saved = saved_bytes(self.module, self.loss) if counts_bytes else 0
        self.timing = Timing(contender.name, sum(p.numel() for p in free), size, saved, peak)
        if self.optimizer:
            self.optimizer.zero_grad()

    def _alive(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()
        yield from self.inputs.values()
        for state in self.optimizer.state.values() if self.optimizer else ():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def loss(self) -> Tensor:
        out = self.module(**self.inputs)
        loss = out.square().mean() if isinstance(out, Tensor) else out.loss
        return loss + self.weight * self.penalty(self.module) if self.penalty else loss

    def step(self) -> tuple[float, float, float]:
        """Return the seconds of forward, backward and update."""
        laps = [_now(self.device)]
        loss = self.loss()
        laps.append(_now(self.device))
        loss.backward()
        laps.append(_now(self.device))
        if self.optimizer:
            self.optimizer.step()
            self.count += 1
            if self.after_step:
                self.after_step(self.module, self.count)
            self.optimizer.zero_grad()
        laps.append(_now(self.device))
        return laps[1] - laps[0], laps[2] - laps[1], laps[3] - laps[2]

    def repeat(self) -> None:
        laps = [self.step() for _ in range(self.steps)]
        for total, seconds in zip((self.timing.forward, self.timing.backward, self.timing.update), zip(*laps, strict=True), strict=True):
            total.append(sum(seconds) / self.steps)


def _asked_of_a_step(contender: Contender) -> tuple[Callable[[nn.Module, int], None] | None, Penalty | None, float]:
    """Return the method's after_step, penalty and penalty weight, as in training."""
    if contender.method is None:
        return None, None, 0.0
    entry = method_named(contender.method[0])
    weight = entry.penalty_weight(MethodSettings(*contender.method, "", PENALTY))
    return entry.after_step, entry.penalty(parse_variant(entry, contender.method[1])), weight


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def plan_groups(contenders: Iterable[Contender], batch: int, *, apart: bool, divided: bool = True) -> list[tuple[list[Contender], int]]:
    """Return which contenders are timed together, and with which batch; the reference is in every group.

    Args:
        apart: one method per group, as whole models need it: every process holds up to 7 GB.
        divided: use the contender's fraction of the batch.
    """
    reference = next(contender for contender in CONTENDERS if contender.name == REFERENCE)
    others = [contender for contender in contenders if contender is not reference]
    together = [contender for contender in others if contender.divide == 1]
    size = 1 if apart else GROUP
    groups = [together[first : first + size] for first in range(0, len(together), size)]
    found = [([reference, *group], batch) for group in groups or [[]]]
    return found + [
        ([reference, contender], max(1, batch // contender.divide) if divided else batch) for contender in others if contender.divide > 1
    ]


def measure_group(shape: Shape, contenders: list[Contender], batch: int, repeats: int, device: str, report: Report) -> list[dict[str, Any]]:
    """Time contenders on one shape in this process, interleaved."""
    runners: list[Any] = []
    for contender in contenders:
        report(f"{shape.name}: {contender.name}, memory")
        runners.append(build_runner(contender, shape, batch, device, base=runners[0].base if runners else None))
    for turn in turns(len(runners), repeats):
        report(f"{shape.name}: {runners[turn].timing.name}")
        runners[turn].repeat()
    return [asdict(runner.timing) for runner in runners]


def build_runner(
    contender: Contender, shape: Shape, batch: int, device: str, *, base: nn.Module | None = None, counts_bytes: bool = True
) -> Runner:
    """Build a contender on a shape with random weights of seed 0, or on the weights of `base`."""
    torch.manual_seed(0)
    with torch.device(device):
        base = base or shape.build()
        inputs = shape.inputs(batch)
    runner = Runner(contender, base, shape, inputs, device, counts_bytes=counts_bytes)
    gc.collect()
    return runner


def turns(count: int, repeats: int) -> Iterator[int]:
    """Yield the order of the contenders: all of them in every round, rotated so that none always follows the same other one."""
    for repeat in range(repeats):
        for index in range(count):
            yield (index + repeat) % count


def serve(channel: Connection, shape: Shape, contender: Contender, batch: int, device: str, *, counts_bytes: bool = True) -> None:
    """Run one contender in its own process, with its own heap as in training: a step for every True, the timing at the end."""
    runner = build_runner(contender, shape, batch, device, counts_bytes=counts_bytes)
    runner.step()
    channel.send(None)
    while channel.recv():
        runner.repeat()
        channel.send(None)
    channel.send(asdict(runner.timing))


def measure_in_turns(channels: list[Connection], names: list[str], repeats: int, report: Report) -> list[dict[str, Any]]:
    """Let the processes of `serve` step one after the other.

    Raises:
        EOFError, ConnectionError: a process has died.
    """
    for channel in channels:
        channel.recv()
    for turn in turns(len(channels), repeats):
        report(names[turn])
        channels[turn].send(True)
        channels[turn].recv()
    for channel in channels:
        channel.send(False)
    return [channel.recv() for channel in channels]


def join_rounds(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Combine the timings of several rounds of processes: all repeats, and the maximum of the bytes."""
    joined = [dict(timing) for timing in rounds[0]]
    for timings in rounds[1:]:
        for ours, theirs in zip(joined, timings, strict=True):
            for phase in ("forward", "backward", "update"):
                ours[phase] = [*ours[phase], *theirs[phase]]
            for count in ("saved_bytes", "peak_bytes"):
                ours[count] = max(ours[count], theirs[count])
    return joined


def measure_products(widths: list[int], rows: int, repeats: int, device: str, report: Report) -> list[dict[str, Any]]:
    """Time the product at every width, next to a copy of the rows and to the chain of sparse matrices. Seconds are of one call; a call gets
    other rows than the calls before it, and its result is kept for as long, so that both come from memory.
    """
    found: list[dict[str, Any]] = []
    for d in widths:
        x, g, blocks = product_inputs(rows, d, device)
        products = [product for product in PRODUCTS if product.max_width is None or d <= product.max_width]
        lines: list[dict[str, Any]] = [{"width": d, "name": product.name, "rows": rows, "seconds": []} for product in products]
        results: list[object] = [None] * len(x)
        for repeat in range(repeats + 1):
            for product, line in zip(products, lines, strict=True):
                report(f"product of width {d}: round {repeat}/{repeats}, {product.name}")
                count = len(x) if product.max_width is None else 1
                factors = build_factors(blocks.detach(), d)
                start = _now(device)
                for i in range(count):
                    results[i] = product.call(x[i], g[i], blocks, factors)
                if repeat:
                    line["seconds"].append((_now(device) - start) / count)
        found += lines
    return found
