"""Probes: abilities of a backbone that the training did not ask for, measured with the pretrained and the tuned one by the same code."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor, nn

from qgoft.config.retention import RetentionSettings
from qgoft.config.settings import RunSettings
from qgoft.run_id import RunId


@dataclass(frozen=True)
class ProbeValue:
    """One measured ability.

    Attributes:
        value: in percent, or nats per token; None if it is undefined.
        n: number of scored items.
        standard_error: over the items.
        chance: value without the ability; None for 0.
    """

    value: float | None
    n: int
    standard_error: float | None
    chance: float | None
    higher_is_better: bool = True

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ProbeContext:
    """Inputs of a probe.

    Attributes:
        settings: those of the run.
        run_id: identity of the run, with its model directory, and a directory for temporary files.
    """

    settings: RunSettings
    run_id: RunId
    asked: RetentionSettings
    accelerator: Accelerator


class Probe(ABC):
    """A probe with its rows loaded.

    Attributes:
        depends_on: name of each value -> everything besides the backbone that it depends on, as plain data.
    """

    depends_on: dict[str, Any]

    @abstractmethod
    def measure(self, model: nn.Module, names: Collection[str]) -> dict[str, ProbeValue]:
        """Return name -> value of a model of transformers with any head.

        Args:
            names: values to measure, of `depends_on`.
        """

    @abstractmethod
    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield model inputs for the geometry of activations, without labels."""


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the part of a model of transformers below its head."""
    return cast(nn.Module, model.base_model)
