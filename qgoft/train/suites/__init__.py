"""The suites of tasks, each by its name in the settings."""

from qgoft.errors import choose
from qgoft.ledger import Identity
from qgoft.settings import RunSettings
from qgoft.train.suites.base import Suite
from qgoft.train.suites.decoder import Alpaca
from qgoft.train.suites.glue import Glue
from qgoft.train.suites.mmlu import Mmlu
from qgoft.train.suites.solving import Commonsense, Math
from qgoft.train.suites.squad import Squad
from qgoft.train.suites.vicuna import Vicuna
from qgoft.train.suites.vtab import Vtab

# A suite, or one task of a suite whose tasks are scored in different ways.
SUITES: dict[str, type[Suite]] = {
    "glue": Glue,
    "squad": Squad,
    "vtab": Vtab,
    "instruct/alpaca": Alpaca,
    "instruct/vicuna": Vicuna,
    "instruct/mmlu": Mmlu,
    "math": Math,
    "commonsense": Commonsense,
}


def build_suite(settings: RunSettings, identity: Identity) -> Suite:
    """Load the rows of a run's task.

    Raises:
        QgoftError: an unknown suite, or something is wrong with the rows.
    """
    return suite_class(settings)(settings, identity)


def suite_class(settings: RunSettings) -> type[Suite]:
    """
    Raises:
        QgoftError: an unknown suite.
    """
    task = settings.task
    name = task.full_name if task.full_name in SUITES else task.suite
    choose("suite", name, list(SUITES), "change task")
    return SUITES[name]


__all__ = ["SUITES", "Suite", "build_suite", "suite_class"]
