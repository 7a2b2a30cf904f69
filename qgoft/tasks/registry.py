"""Registry of suites by name."""

from qgoft.config.settings import RunSettings
from qgoft.errors import check_choice
from qgoft.run_id import RunId
from qgoft.tasks.base import Suite
from qgoft.tasks.decoder.mmlu import Mmlu
from qgoft.tasks.decoder.solvers import Commonsense, Math
from qgoft.tasks.decoder.suite import Alpaca
from qgoft.tasks.decoder.vicuna import Vicuna
from qgoft.tasks.glue.suite import Glue
from qgoft.tasks.squad.suite import Squad
from qgoft.tasks.vtab.suite import Vtab

# Key: a suite, or one task of a suite whose tasks are scored in different ways.
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


def build_suite(settings: RunSettings, run_id: RunId) -> Suite:
    """Load the data of a run's task.

    Raises:
        QgoftError: an unknown suite, or invalid data.
    """
    return suite_class(settings)(settings, run_id)


def suite_class(settings: RunSettings) -> type[Suite]:
    """Return the class of a task's suite.

    Raises:
        QgoftError: an unknown suite.
    """
    task = settings.task
    name = task.full_name if task.full_name in SUITES else task.suite
    check_choice("suite", name, list(SUITES), "change task")
    return SUITES[name]


__all__ = ["SUITES", "Suite", "build_suite", "suite_class"]
