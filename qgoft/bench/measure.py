"""Interleaved timing: every repeat runs all rivals once, so that a slow moment of a shared machine falls on all of them.

What is compared is the ratio to LoRA r=8 within a repeat (qgoft.report.bench).
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qgoft.bench.memory import peak_bytes, saved_bytes
from qgoft.bench.rivals import PRODUCTS, REFERENCE, RIVALS, Rival, pass_gradients_below, product_inputs, put_on
from qgoft.bench.shapes import Shape
from qgoft.tuners import orthogonality_penalty

PENALTY = 0.01
# The gradient of a sparse matrix is computed densely, in d x d: beyond this width it takes seconds.
SPARSE_WIDTH = 3072
Report = Callable[[str], None]


@dataclass
class Timing:
    """One rival on one shape: seconds of every repeat, bytes kept for backward, and the most alive in a step, weights included.

    Forward includes the penalty where there is one; update is AdamW and clearing the gradients.
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
    """A rival on a module, ready to step."""

    def __init__(self, rival: Rival, base: nn.Module, shape: Shape, inputs: dict[str, Tensor], device: str):
        self.module = put_on(rival, base, shape)
        pass_gradients_below(self.module, shape)
        self.inputs, self.device = inputs, device
        free = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(free, 1e-4, fused=True) if free else None
        self.has_penalty = rival.name.startswith("qgoft") and rival.mix is None
        size = next(iter(inputs.values())).shape[0]
        self.step()
        # The second step's peak: gradients and the optimiser's state exist by then, as in all later ones.
        peak = peak_bytes(self._alive(), self.step, device)
        self.timing = Timing(rival.name, sum(p.numel() for p in free), size, saved_bytes(self.module, self.loss), peak)
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
        return loss + PENALTY * orthogonality_penalty(self.module) if self.has_penalty else loss

    def step(self) -> tuple[float, float, float]:
        """Seconds of forward, backward and update."""
        laps = [_now(self.device)]
        loss = self.loss()
        laps.append(_now(self.device))
        loss.backward()
        laps.append(_now(self.device))
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()
        laps.append(_now(self.device))
        return laps[1] - laps[0], laps[2] - laps[1], laps[3] - laps[2]

    def repeat(self) -> None:
        for total, seconds in zip((self.timing.forward, self.timing.backward, self.timing.update), self.step(), strict=True):
            total.append(seconds)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def plan_groups(rivals: Iterable[Rival], batch: int) -> list[tuple[list[Rival], int]]:
    """Who is timed in one go, with which batch: all together, and each rival that needs a smaller batch alone beside the reference."""
    rivals = list(rivals)
    groups = [([rival for rival in rivals if rival.divide == 1], batch)]
    reference = next(rival for rival in RIVALS if rival.name == REFERENCE)
    return groups + [([reference, rival], max(1, batch // rival.divide)) for rival in rivals if rival.divide > 1]


def measure_group(shape: Shape, rivals: list[Rival], batch: int, repeats: int, device: str, report: Report) -> list[dict[str, Any]]:
    """Time rivals on one shape, interleaved."""
    torch.manual_seed(0)
    with torch.device(device):
        base = shape.build()
        inputs = shape.inputs(batch)
    runners = []
    for rival in rivals:
        report(f"{shape.name}: {rival.name}, memory")
        runners.append(Runner(rival, base, shape, inputs, device))
    gc.collect()
    for repeat in range(repeats):
        for index in range(len(runners)):
            # The order turns, so that nobody always runs after the same neighbour.
            runner = runners[(index + repeat) % len(runners)]
            report(f"{shape.name}: round {repeat + 1}/{repeats}, {runner.timing.name}")
            runner.repeat()
    return [asdict(runner.timing) for runner in runners]


def measure_products(widths: list[int], rows: int, repeats: int, device: str, report: Report) -> list[dict[str, Any]]:
    """Forward and backward of the product alone, by the tree at every width, and by the chain of sparse matrices up to 3072."""
    runs = [(d, product) for d in widths for product in PRODUCTS if product.name == "tree" or d <= SPARSE_WIDTH]
    found: list[dict[str, Any]] = [{"width": d, "name": product.name, "rows": rows, "seconds": []} for d, product in runs]
    prepared = {d: product_inputs(rows, d, device) for d in widths}
    for repeat in range(repeats + 1):
        for (d, product), line in zip(runs, found, strict=True):
            report(f"product of width {d}: round {repeat}/{repeats}, {product.name}")
            x, blocks = prepared[d]
            start = _now(device)
            torch.autograd.grad(product.apply(x, blocks).sum(), (x, blocks))
            if repeat:
                line["seconds"].append(_now(device) - start)
    return found
