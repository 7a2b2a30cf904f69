"""Train one run, or with -m a sweep: python scripts/train.py task=glue/mrpc method=qgoft protocol=goft_icml24 seed=1"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from qgoft.cli import exit_code
from qgoft.config import locations
from qgoft.config.compose import (
    check_overrides,
    compose_settings,
    expand_multirun,
    launcher_settings,
    name_peft_methods,
    quote_path,
    settings_from_config,
)
from qgoft.errors import QgoftError, check_choice
from qgoft.lease import HEARTBEAT_INTERVAL, LEASE_DURATION, LeaseHeld, LeaseLost
from qgoft.machine import available_cores
from qgoft.records import RecordError
from qgoft.run_id import results_directory
from qgoft.sweep.actions import SweepRequest, run_action
from qgoft.sweep.executor import LAUNCHERS, ExecutorOptions
from qgoft.sweep.planned_run import PlannedRun, compose_all
from qgoft.sweep.worker import train

MULTIRUN = ("-m", "--multirun")


class JobFailed(HydraException):
    """The run ended without a result; Hydra prints the message and exits with 1."""


@hydra.main(version_base=None, config_path=str(locations.CONFIGS), config_name="train")
def hydra_main(config: DictConfig) -> str:
    """Train with a configuration composed by Hydra's own command line, which knows --cfg, --help and similar options."""
    record = train(settings_from_config(config), list(HydraConfig.get().overrides.task))
    if record["status"] != "done":
        raise JobFailed(f"{record['status']}: {record['reason']}")
    return str(record["key"])


def multirun(overrides: list[str]) -> int:
    """Run the product of the lists among the overrides, with the executor of `make`. Return the exit code."""
    combinations, launcher, of_launcher = expand_multirun(overrides)
    check_choice("launcher", launcher, list(LAUNCHERS), "change hydra/launcher")
    cores = available_cores()
    options = {} if launcher == "basic" else launcher_settings(launcher, of_launcher)
    jobs = int(options.get("n_jobs", options.get("array_parallelism", cores)))
    planned = [PlannedRun(*pair) for pair in zip(combinations, compose_all(combinations, cores), strict=True)]
    root = results_directory(planned[0].settings).parent
    request = SweepRequest("sweep", root, ExecutorOptions(jobs, launcher, overrides=of_launcher))
    return run_action(request, planned, lambda runs: None)


def main(argv: list[str]) -> int:
    try:
        flags = [word for word in argv if word.startswith("-")]
        overrides = [word for word in argv if word not in MULTIRUN]
        if flags and set(flags) <= set(MULTIRUN):
            return multirun(overrides)
        check_overrides(argv)
        if flags:
            sys.argv[1:] = [quote_path(word) for word in name_peft_methods(argv)]
            hydra_main()
            return 0
        # A new process needs a whole lease duration to see whether an owner on another host is alive.
        record = train(compose_settings(argv), argv, acquire_timeout=LEASE_DURATION + HEARTBEAT_INTERVAL)
    except (QgoftError, RecordError, LeaseHeld, LeaseLost) as error:
        print(f"qgoft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return exit_code(stop)
    return 0 if record["status"] == "done" else 1
