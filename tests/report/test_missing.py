from collections import Counter

import pytest

from qgoft.report.missing import MissingRuns

HOURS = {"hours_a_run": {"small": {"lambda": {"glue/qnli": 0.5}}}}


@pytest.mark.parametrize(
    ("task", "seconds", "cost"),
    [("glue/qnli", None, "2 CPU core hours"), ("glue/mrpc", 7200.0, "2.0 CPU core hours"), ("glue/mrpc", None, "unknown")],
)
def test_task_without_estimate(task, seconds, cost):
    """A task that was added to an item has no estimate in results/published/hours.json."""
    assert MissingRuns("lambda", "small", 4, Counter({(task, "qgoft"): 4}), seconds).row(HOURS)[4] == cost
