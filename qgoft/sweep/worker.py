"""Training in a sweep's worker process."""

from collections.abc import Sequence
from typing import Any

from qgoft.config.compose import own_overrides
from qgoft.config.settings import RunSettings
from qgoft.console import guard_output


def train(settings: RunSettings, overrides: Sequence[str] = (), acquire_timeout: float = 0.0) -> dict[str, Any]:
    """Train and return the record. torch is imported here, so that invalid settings are reported immediately."""
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.run import run

    guard_output()
    quiet_libraries()
    return run(settings, acquire_timeout=acquire_timeout, overrides=own_overrides(overrides))
