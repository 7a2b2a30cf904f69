"""docs/adding_a_method.md, carried out word by word."""

import re
import shutil

import pytest

from qgoft.config import compose as _settings
from qgoft.config import locations
from qgoft.errors import QgoftError
from qgoft.methods.registry import REGISTRY
from qgoft.report import rows
from qgoft.sweep import planned_run
from qgoft.train.run import run

METHOD, SHAPES = "vera", 12 * [(96, 96)] + 3 * [(384, 96), (96, 384)]


@pytest.fixture
def blocks(repository):
    text = (repository / "docs" / "adding_a_method.md").read_text()
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S))


@pytest.fixture
def added(blocks, repository, tmp_path, monkeypatch):
    """The registry and a copy of configs with the method of the page, for the time of a test."""
    configs = tmp_path / "configs"
    shutil.copytree(repository / "configs", configs)
    (configs / "method" / f"{METHOD}.yaml").write_text(blocks["yaml"])
    monkeypatch.setattr(locations, "CONFIGS", configs)
    known = dict(REGISTRY)
    exec(blocks["python"], {})
    yield blocks
    REGISTRY.clear()
    REGISTRY.update(known)


def test_three_moves_make_a_method(added, tmp_path):
    words = re.search(r'ARGS="(.*?)"', added["sh"])[1].split()
    settings = _settings.compose_settings(
        [f"method={METHOD}", "task=glue/rte", *words, "train.max_steps=6", "train.num_evals=1", f"results.root={tmp_path}"]
    )
    record = run(settings)
    assert (record["status"], record["method"], record["variant"]) == ("done", METHOD, "r64")
    # Its row of a table is marked: the recipe is another method's.
    cell = planned_run.PlannedRun((f"method={METHOD}", "task=glue/rte", "protocol=pocket", *words, "seed=0"), settings)
    assert rows.is_altered(cell)
    assert record["params"]["trainable"] == REGISTRY[METHOD].num_params(SHAPES, {"r": 64}) == sum(n + 64 for n, _ in SHAPES)


def test_without_a_recipe_it_says_so(added):
    with pytest.raises(QgoftError, match=r"recipe/pocket/vera|Could not find 'recipe"):
        _settings.compose_settings([f"method={METHOD}", "task=glue/rte"])


def test_it_is_gone_afterwards():
    assert METHOD not in REGISTRY
