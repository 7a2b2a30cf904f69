"""VTAB runs: the record, the reloaded adapter, stochastic depth, and text models."""

import pytest

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models.drop_path import DropPath
from qgoft.run_id import identify
from qgoft.train.rescore import rescore
from qgoft.train.run import prepare, run, train_loader

SHORT = ["train.max_steps=6", "train.num_evals=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    s = compose_settings(["task=vtab/digits", *SHORT, f"results.root={tmp_path_factory.mktemp('vtab')}"])
    return run(s), identify(s).directory


def test_vtab_record(done):
    record, _ = done
    assert record["status"] == "done"
    assert record["primary"] == "accuracy"
    assert record["metrics"]["accuracy"]["n"] == 797
    assert record["metrics"]["accuracy"]["majority_baseline"] == pytest.approx(10, abs=2)
    assert record["params"]["head"] == 96 * 10 + 10
    assert record["params"]["trainable"] == 4 * (5 * 4 * 95 + 4 * 383)
    assert record["provenance"]["data"]["rows"] == {"train800": 800, "val200": 200, "test": 797}
    assert record["provenance"]["data"]["data_fixes"] == {"images of mode L, converted to RGB": 1797}


def test_vtab_adapter_reproduces_the_score(done):
    record, directory = done
    for merge, within in ((False, 1e-9), (True, 0.3)):
        _, measured = rescore(directory, merge=merge)
        assert measured["accuracy"].value == pytest.approx(record["metrics"]["accuracy"]["value"], abs=within)


def test_vtab_paper_settings_on_pocket(tmp_path):
    """GOFT's protocol on another model and data: full batches only, stochastic depth, query and value, the last step."""
    words = ["protocol=goft_icml24", "task=vtab/digits", "method=qgoft", "model=pocket_vit", "data.source=pocket"]
    with pytest.raises(QgoftError, match="not part of VTAB-1K"):
        compose_settings(words)
    words[1] = "task=vtab/svhn"
    s = compose_settings([*words, "train.epochs=1", f"results.root={tmp_path}"])
    prepared = prepare(s, identify(s))
    assert len(train_loader(prepared)) == 15
    rates = [module.rate for module in prepared.adapted.model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    record = run(s)
    assert record["status"] == "done"
    assert record["cost"]["steps"] == 15
    assert record["params"]["trainable"] == 4 * 2 * 4 * 95
    assert record["provenance"]["data"]["rows"] == {"train800val200": 1000, "test": 1000}


def test_vtab_text_model_is_refused(tmp_path):
    s = compose_settings(["task=vtab/digits", "model=pocket_deberta", *SHORT, f"results.root={tmp_path}"])
    with pytest.raises(QgoftError, match="has no image_size"):
        run(s)
