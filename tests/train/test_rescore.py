"""A finished run gives the same score from its files, merged or not; another base model is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qgoft.commands import rescore as script
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.records import base_model, read_record, write_record
from qgoft.run_id import identify, key_from_record
from qgoft.tasks.evaluate import Metric
from qgoft.train import rescore as rescore_module
from qgoft.train.export import export_run
from qgoft.train.rescore import rescore
from qgoft.train.run import run
from qgoft.train.shared_training import as_recorded
from tests.methods.test_psoft import with_other_signs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = {}
    root = tmp_path_factory.mktemp("runs")
    for name, words in {
        "qgoft": [],
        "bitfit": [],
        "random": ["method=qgoft", "model=pocket_deberta_random"],
        "adalora": [],
        "psoft": [],
    }.items():
        own = words or [f"method={name}"]
        s = compose_settings([f"results.root={root}", "task=glue/rte", *own, "train.max_steps=20", "selection=last"])
        assert run(s)["status"] == "done"
        made[name] = identify(s).directory
    return made


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", ["qgoft", "bitfit", "random", "adalora", "psoft"])
def test_rescore_reproduces_scores(finished, method, merge):
    """A random backbone is initialised as before, whatever else was drawn since."""
    record, metrics = rescore(finished[method], merge=merge)
    assert metrics["accuracy"].value == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.1)


def test_rescore_other_base_is_refused(finished, tmp_path):
    base = identify(compose_settings(["task=glue/rte"])).model.directory
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QgoftError, match="an adapter belongs to its base"):
        rescore(finished["qgoft"], merge=False, model_path=str(tmp_path))


def test_rescore_checks_tokenizer_and_config(tmp_path):
    """The weights do not determine the tokenisation; other files in the directory do not count."""
    packaged = identify(compose_settings(["task=glue/rte"])).model.directory
    for name in ("one", "same", "other"):
        shutil.copytree(packaged, tmp_path / name)
    (tmp_path / "same" / "trainer_state.json").write_text("{}")
    path = tmp_path / "other" / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"note": "another", ', 1))
    words = [f"results.root={tmp_path}", "task=glue/rte", "method=linear", "train.max_steps=2", "train.num_evals=1", "selection=last"]
    one, same, other = (compose_settings([*words, f"model.path={tmp_path / name}"]) for name in ("one", "same", "other"))
    assert identify(one).key == identify(same).key != identify(other).key
    record = run(one)
    assert key_from_record(record) == record["key"] == identify(one).key
    assert base_model(record) == (identify(one).model.sha256, identify(one).model.files)
    rescore(identify(one).directory, merge=False, model_path=str(tmp_path / "same"))
    with pytest.raises(QgoftError, match="had its weights from a directory; name it with --model-path"):
        rescore(identify(one).directory, merge=False)
    with pytest.raises(QgoftError, match="the tokenizer and configuration here have checksum"):
        rescore(identify(one).directory, merge=False, model_path=str(tmp_path / "other"))


def without_checksums(directory):
    """Turn the record into one of an earlier version, without the checksum of its adapter."""
    record = read_record(directory / "record.json")
    record["files"] = {name: checksum for name, checksum in record["files"].items() if not name.startswith("adapter/")}
    write_record(directory, record)


def test_rescore_changed_adapter(finished, tmp_path):
    shutil.copytree(finished["qgoft"], tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(QgoftError, match=r"adapter_model\.safetensors: it was changed after the run finished"):
        rescore(tmp_path / "run", merge=False)
    with pytest.raises(QgoftError, match=r"adapter_model\.safetensors: it was changed after the run finished"):
        export_run(tmp_path / "run", tmp_path / "plain")
    path.unlink()
    with pytest.raises(QgoftError, match=r"adapter_model\.safetensors: it is missing since the run finished"):
        rescore(tmp_path / "run", merge=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.fill_(torch.nan), "has values that are not finite"),
        (lambda tensor: tensor.to(torch.int8), "has dtype torch.int8; expected a floating-point parameter"),
    ],
)
def test_rescore_nan_parameters(finished, tmp_path, change, reason):
    shutil.copytree(finished["qgoft"], tmp_path / "run")
    without_checksums(tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "goft_" in name)
    save_file({**weights, name: change(weights[name].clone())}, path)
    with pytest.raises(QgoftError, match=reason):
        rescore(tmp_path / "run", merge=False)


def test_rescore_damaged_adapter(finished, tmp_path):
    shutil.copytree(finished["qgoft"], tmp_path / "run")
    without_checksums(tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if "goft_" in name))
    save_file(weights, path)
    # peft would only warn, and some scores would be those of the base model.
    with pytest.raises(QgoftError, match="do not fit this model"):
        rescore(tmp_path / "run", merge=False)


def test_rescore_with_other_svd_signs(finished, tmp_path, monkeypatch):
    """PSOFT stores only R, and singular vectors are unique except for their signs."""
    monkeypatch.setattr(torch.linalg, "svd", with_other_signs(torch.linalg.svd, of_rows=True))
    record, metrics = rescore(finished["psoft"], merge=False)
    assert metrics["accuracy"].value == pytest.approx(record["metrics"]["accuracy"]["value"], abs=0.1)
    shutil.copytree(finished["psoft"], tmp_path / "run")
    without_checksums(tmp_path / "run")
    (tmp_path / "run" / "adapter" / "signs.json").write_text("{}")
    with pytest.raises(QgoftError, match=r"the signs of the factors of .* are missing"):
        rescore(tmp_path / "run", merge=False)


def test_rescore_uses_recorded_revisions():
    settings = compose_settings(["task=glue/rte", "protocol=goft_icml24"])
    made = {"provenance": {"model": {"revision": "0a1b"}, "data": {"revision": "2c3d"}}}
    found = as_recorded(settings, made)
    assert (found.model.revision, found.data.revision) == ("0a1b", "2c3d")
    made["provenance"] = {"model": {"revision": None}, "data": {"revision": "2c3d, 4e5f"}}
    assert as_recorded(settings, made) == settings


def test_rescore_tolerance_by_unit(finished, monkeypatch, capsys):
    """A fifth of a point is negligible for an accuracy; for a loss it is another model."""
    words = [str(finished["qgoft"])]
    assert script.main(words) == 0
    assert "unmerged: the same" in capsys.readouterr().out
    measured = {"loss": Metric(1.15, 1, None, None, "")}
    monkeypatch.setattr(rescore_module, "rescore", lambda *_, **__: ({"metrics": {"loss": {"value": 1.0}}}, measured))
    assert script.main(words) == 1
    assert "difference 0.1500, tolerance 0.002" in capsys.readouterr().out


def test_rescore_does_not_ask_the_judge(finished, tmp_path, monkeypatch):
    shutil.copytree(finished["qgoft"], tmp_path / "run")
    record = read_record(tmp_path / "run" / "record.json")
    record["settings"]["judge"].update(kind="openai", model="some-judge")
    write_record(tmp_path / "run", record)
    with pytest.raises(QgoftError, match=r"asks the judge \(some-judge\) for every rating again"):
        script.main([str(tmp_path / "run")])


def test_rescore_missing_run(tmp_path):
    with pytest.raises(QgoftError, match=r"has no record\.json"):
        rescore(tmp_path, merge=False)
