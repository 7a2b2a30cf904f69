#!/usr/bin/env python3
"""One run, or with -m a sweep: python scripts/train.py task=glue/mrpc method=qgoft protocol=goft_icml24 seed=1"""

import sys
from collections.abc import Sequence
from typing import Any

import hydra
from _ending import exit_code
from _settings import check_overrides, compose_settings, own_overrides, quoted, settings_of
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from qgoft.console import guard_output
from qgoft.errors import QgoftError
from qgoft.ledger import EXPIRY, HEARTBEAT, LeaseHeld, LeaseLost
from qgoft.records import RecordError
from qgoft.settings import RunSettings

# What is told in one line.
WRONG = (QgoftError, RecordError, LeaseHeld, LeaseLost)


def train(settings: RunSettings, words: Sequence[str] = (), patience: float = 0.0) -> dict[str, Any]:
    """Run it; torch is imported here, so that mistakes in the settings are told at once."""
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.run import run

    guard_output()
    quiet_libraries()
    return run(settings, patience=patience, overrides=own_overrides(words))


class JobFailed(HydraException):
    """One job of a sweep failed; the others go on, and the exit code is 1 in the end."""


@hydra.main(version_base=None, config_path="../configs", config_name="train")
def sweep_job(config: DictConfig) -> str:
    try:
        record = train(settings_of(config), list(HydraConfig.get().overrides.task))
    except WRONG as error:
        print(f"qgoft: {error}", file=sys.stderr)
        raise JobFailed(str(error)) from None
    if record["status"] != "done":
        raise JobFailed(f"{record['status']}: {record['reason']}")
    return record["key"]


def main(arguments: list[str]) -> int:
    try:
        check_overrides(arguments)
        if any(argument.startswith("-") for argument in arguments):
            sys.argv[1:] = [quoted(argument) for argument in arguments]
            sweep_job()
            return 0
        # A new process sees a lease for the first time, and cannot tell from one look whether its holder on another machine is alive.
        record = train(compose_settings(arguments), arguments, patience=EXPIRY + HEARTBEAT)
    except WRONG as error:
        print(f"qgoft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return exit_code(stop)
    return 0 if record["status"] == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
