"""Numbers do not change in silence: every embedded training begins with the losses that are kept, and who keeps others says so."""

import json

import pytest

from tests.train import loss_curves

KEPT = json.loads(loss_curves.FILE.read_text())


def test_every_task_has_a_curve():
    assert list(KEPT) == [f"{task} {method}" for task, method in loss_curves.curves()]
    assert {task.split("/")[0] for task, _ in loss_curves.curves()} == {"glue", "squad", "vtab", "instruct", "math", "commonsense"}


@pytest.mark.parametrize(("task", "method"), loss_curves.curves())
def test_the_first_losses_are_those_that_are_kept(task, method):
    losses = loss_curves.measure(task, method)
    assert losses == pytest.approx(KEPT[f"{task} {method}"], rel=loss_curves.TOLERANCE), "see scripts/loss_curves.py"


def test_a_change_of_the_curves_is_in_the_changelog(repository):
    line = f"loss curves {loss_curves.checksum()}"
    assert line in (repository / "CHANGELOG.md").read_text(), f"say in CHANGELOG.md what moved the numbers, with {line!r}"


def test_a_thousandth_of_the_learning_rate_is_seen():
    kept = KEPT["glue/rte qgoft"]
    assert loss_curves.measure("glue/rte", "qgoft", "optim.lr=2.002e-2") != pytest.approx(kept, rel=loss_curves.TOLERANCE)
