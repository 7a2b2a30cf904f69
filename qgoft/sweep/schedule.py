"""Order of the runs of a sweep."""

from qgoft.config.keys import settings_of_training
from qgoft.config.suites import suite_info
from qgoft.records import canonical_json
from qgoft.sweep.planned_run import PlannedRun


def schedule_order(pending: dict[int, PlannedRun]) -> list[tuple[int, PlannedRun]]:
    """Return the runs seed by seed, so that an interrupted sweep leaves complete tables.

    The tasks of a decoder suite share one training. The first task of each training precedes the others, which would otherwise wait for it.
    """
    trainings: set[str] = set()
    places = {}
    for number, planned in pending.items():
        is_decoder = suite_info(planned.settings.task.suite).is_decoder
        training = canonical_json(settings_of_training(planned.settings)) if is_decoder else str(number)
        places[number] = (planned.settings.seed, training in trainings, number)
        trainings.add(training)
    return sorted(pending.items(), key=lambda item: places[item[0]])
