"""The files of a model directory that are its weights, and the directories that are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.models import load_classifier
from qgoft.pocket.weights import weights_directory
from qgoft.tasks.model_files import check_directory, weight_files, weights_sha256
from qgoft.tasks.sources import resolve_model


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(weights_directory("pocket-deberta"), tmp_path / "model")


def shard(model):
    """Split the weights in two, as save_pretrained does with large ones."""
    weights = load_file(model / "model.safetensors")
    names, parts = sorted(weights), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for number, part in enumerate(parts):
        save_file({name: weights[name] for name in names[number::2]}, model / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: parts[number % 2] for number, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    return index


@pytest.mark.parametrize("name", ["optimizer.safetensors", "pytorch_model.generator.bin", "training_args.bin", "pytorch_model.bin"])
def test_weights_checksum_ignores_other_files(model, name):
    before = weights_sha256(model)
    (model / name).write_bytes(b"not the weights")
    assert weights_sha256(model) == before
    assert [path.name for path in weight_files(model)] == ["model.safetensors"]


def test_weights_checksum_includes_the_index(model):
    index = shard(model)
    before = weights_sha256(model)
    assert weight_files(model)[0].name == "model.safetensors.index.json"
    index["metadata"]["total_size"] = 3
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_sha256(model) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not an index of shards"),
        ("{}", "is not an index of shards"),
        ('{"weight_map": {"a": "../other.safetensors"}}', r"names the shard \.\./other\.safetensors"),
        ('{"weight_map": {"a": "missing.safetensors"}}', r"names the shard missing\.safetensors"),
    ],
)
def test_weights_index_invalid(model, text, message):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(QgoftError, match=message):
        weights_sha256(model)


def test_weights_missing(model):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    with pytest.raises(QgoftError, match=r"has none of model\.safetensors, .*the download is incomplete"):
        weights_sha256(model)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_next_to_weights_is_refused(model, name):
    (model / name).write_text("{}")
    settings = compose_settings(["task=glue/rte", f"model.path={model}"])
    with pytest.raises(QgoftError, match=rf"{name}: transformers would load this adapter on top of the weights"):
        resolve_model(settings.model)


def test_transformers_weights_is_refused(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.raises(QgoftError, match=r"transformers_weights='other.safetensors' names other weights than model\.safetensors"):
        check_directory(model)


@pytest.mark.parametrize("with_prefix", [True, False])
def test_extra_layers_are_refused(model, with_prefix):
    config = json.loads((model / "config.json").read_text())
    assert config["num_hidden_layers"] > 1
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    if not with_prefix:
        weights = load_file(model / "model.safetensors")
        save_file(
            {name.removeprefix("deberta."): tensor for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"}
        )
    settings = compose_settings(["task=glue/rte", f"model.path={model}"])
    with pytest.raises(QgoftError, match=r"have layers that config\.json does not: (deberta\.)?encoder\.layer\.1\."):
        load_classifier(settings, model)


def test_other_heads_are_not_extra_layers(model):
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "lm_predictions.lm_head.dense.weight": torch.zeros(2, 2)}, model / "model.safetensors", {"format": "pt"})
    loaded = load_classifier(compose_settings(["task=glue/rte", f"model.path={model}"]), model)
    name = next(name for name in weights if "encoder" in name)
    assert torch.equal(loaded.base_model.state_dict()[name], weights[name])
