"""Searches of learning rates: trials, selection, and the recipe lines that are written."""

import itertools

import pytest
import yaml

from qgoft.commands import tune
from qgoft.config.compose import compose_settings
from qgoft.config.locations import CONFIGS
from qgoft.errors import QgoftError

SEARCHES = yaml.safe_load((CONFIGS / "tuning.yaml").read_text())


@pytest.mark.parametrize("name", SEARCHES)
def test_tune_trials_compose(name):
    trials, spec = tune.plan(name, None)
    assert len(trials) == len(spec["centres"]) * len(spec["ratios"]) * len(spec["tasks"])
    # A few methods, and every task; test_configs tests that all of them compose.
    methods, (task, *_) = list(spec["centres"])[::6], spec["tasks"]
    for pair in {*itertools.product(methods, [task]), *itertools.product(methods[:1], spec["tasks"])}:
        settings = compose_settings([f"protocol={spec['protocol']}", f"method={pair[0]}", f"task={pair[1]}", *spec.get("overrides", [])])
        assert settings.selection == "best_validation"


def test_tune_unknown_search():
    with pytest.raises(QgoftError, match=r"unknown search 'poket' .*; allowed are pocket, "):
        tune.plan("poket", None)


def test_tune_unknown_method():
    with pytest.raises(QgoftError, match=r"unknown method 'qgfot' .*; allowed are adalora, "):
        tune.plan("pocket", ["qgfot"])


def test_tune_ignores_trials_of_other_settings():
    trials = [("lora", 0.1, "glue/rte"), ("lora", 0.2, "glue/rte")]
    cells, shorter, elsewhere = (
        tune.cells_of(trials, "pocket", words, 1) for words in ([], ["train.max_steps=20"], ["results.root=elsewhere"])
    )
    keys, short = ({trial: cell.key for trial, cell in found.items()} for found in (cells, shorter))
    assert len({*keys.values(), *short.values()}) == 4
    assert keys == {trial: cell.key for trial, cell in elsewhere.items()}

    def line(lr, key):
        return {"method": "lora", "lr": lr, "task": "glue/rte", "score": 99, "key": key}

    whole, of_before = line(0.1, keys[trials[0]]), {**line(0.1, ""), "overrides": []}
    del of_before["key"]
    lines = [line(0.1, short[trials[0]]), whole, line(0.4, keys[trials[0]]), line(0.2, keys[trials[0]]), of_before]
    assert tune.of_this_search(lines, cells) == [whole]


def test_tune_selects_best_mean():
    scores = {0.1: (50, 60), 0.2: (70, 30), 0.4: (90, None)}
    lines = [{"method": "m", "lr": lr, "task": task, "score": s} for lr, both in scores.items() for task, s in zip("ab", both, strict=True)]
    assert tune.choose_rates(lines, ["a", "b"]) == {"m": 0.1}


@pytest.mark.parametrize("method", ["lora", "psoft", "boft"])
def test_tune_writes_only_its_suites(tmp_path, method):
    """Other suites keep their learning rate and its source: tuned, of another suite, or the centre of the grid."""
    path = tmp_path / f"{method}.yaml"
    path.write_text((CONFIGS / "recipe" / "pocket" / f"{method}.yaml").read_text())
    before = yaml.safe_load(path.read_text())
    tune.write_recipe(path, ["math"], 0.00123)
    after = yaml.safe_load(path.read_text())
    assert after["math"]["all"] == {"lr": 1.2e-3}
    assert after["source"] == "own"

    def told(recipe):
        return {(suite, task): {"source": recipe["source"], **line} for suite, lines in recipe.items() if isinstance(lines, dict) and suite != "math"
                for task, line in lines.items()}  # fmt: skip

    assert told(after) == told(before)
