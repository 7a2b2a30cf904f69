"""One run, or with -m a sweep: python scripts/train.py task=glue/mrpc method=qgoft protocol=goft_icml24 seed=1"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from qgoft.cli import exit_code
from qgoft.config.compose import CONFIGS, check_overrides, compose_settings, quoted, settings_of
from qgoft.errors import QgoftError
from qgoft.lease import HEARTBEAT_INTERVAL, LEASE_DURATION, LeaseHeld, LeaseLost
from qgoft.records import RecordError
from qgoft.sweep.worker import train

# What is told in one line.
WRONG = (QgoftError, RecordError, LeaseHeld, LeaseLost)


class JobFailed(HydraException):
    """One job of a sweep failed; the others go on, and the exit code is 1 in the end."""


@hydra.main(version_base=None, config_path=str(CONFIGS), config_name="train")
def sweep_job(config: DictConfig) -> str:
    try:
        record = train(settings_of(config), list(HydraConfig.get().overrides.task))
    except WRONG as error:
        print(f"qgoft: {error}", file=sys.stderr)
        raise JobFailed(str(error)) from None
    if record["status"] != "done":
        raise JobFailed(f"{record['status']}: {record['reason']}")
    return record["key"]


def main(words: list[str]) -> int:
    try:
        check_overrides(words)
        if any(word.startswith("-") for word in words):
            sys.argv[1:] = [quoted(word) for word in words]
            sweep_job()
            return 0
        # A new process sees a lease for the first time, and cannot tell from one look whether its holder on another machine is alive.
        record = train(compose_settings(words), words, acquire_timeout=LEASE_DURATION + HEARTBEAT_INTERVAL)
    except WRONG as error:
        print(f"qgoft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return exit_code(stop)
    return 0 if record["status"] == "done" else 1
