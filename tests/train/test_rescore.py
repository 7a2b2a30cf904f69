"""A finished run scores the same from its files, merged or not, and refuses another base."""

import json

import pytest
from _settings import compose_settings

from qgoft.errors import QgoftError
from qgoft.ledger import identify
from qgoft.train.rescore import rescore
from qgoft.train.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = {}
    root = tmp_path_factory.mktemp("runs")
    for method in ("qgoft", "bitfit"):
        s = compose_settings([f"results.root={root}", "task=glue/rte", f"method={method}", "train.max_steps=20", "selection=last"])
        assert run(s)["status"] == "done"
        made[method] = identify(s).folder
    return made


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", ["qgoft", "bitfit"])
def test_scores_come_back(finished, method, merge):
    record, metrics = rescore(finished[method], merge=merge)
    assert metrics["accuracy"].value == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.1)


def test_an_adapter_of_another_base_is_refused(finished, tmp_path):
    from safetensors.torch import load_file, save_file

    base = identify(compose_settings(["task=glue/rte"])).model.folder
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QgoftError, match="an adapter belongs to its base"):
        rescore(finished["qgoft"], merge=False, model_path=str(tmp_path))


def test_a_damaged_adapter_is_one_line(finished, tmp_path):
    import shutil

    shutil.copytree(finished["qgoft"], tmp_path / "run")
    config = tmp_path / "run" / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "variant": "goft"}))
    # The file holds blocks, the configuration asks for angles: peft warns of missing keys, and the scores would be the base model's.
    with pytest.raises(QgoftError, match="does not fit"):
        rescore(tmp_path / "run", merge=False)


def test_no_run(tmp_path):
    with pytest.raises(QgoftError, match="holds no record"):
        rescore(tmp_path, merge=False)
