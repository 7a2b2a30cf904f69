"""Losses of the first steps of every embedded training, against committed ones."""

import json

import pytest

from tests.train import loss_curves

KEPT = json.loads(loss_curves.FILE.read_text())


def test_tasks_have_a_loss_curve():
    assert list(KEPT) == [f"{task} {method}" for task, method in loss_curves.curves()]
    assert {task.split("/")[0] for task, _ in loss_curves.curves()} == {"glue", "squad", "vtab", "instruct", "math", "commonsense"}


@pytest.mark.parametrize(("task", "method"), loss_curves.curves())
def test_losses_equal_the_committed_curves(task, method):
    losses = loss_curves.measure(task, method)
    assert losses == pytest.approx(KEPT[f"{task} {method}"], rel=loss_curves.TOLERANCE), "see tests/train/loss_curves.py"


def test_changelog_names_the_curves(repository):
    line = f"loss curves {loss_curves.checksum()}"
    assert line in (repository / "CHANGELOG.md").read_text(), f"say in CHANGELOG.md what moved the numbers, with {line!r}"


def test_curves_detect_a_changed_rate():
    kept = KEPT["glue/rte qgoft"]
    assert loss_curves.measure("glue/rte", "qgoft", "optim.lr=2.002e-2") != pytest.approx(kept, rel=loss_curves.TOLERANCE)
