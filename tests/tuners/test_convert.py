"""Conversion of released adapters: files, options and errors. tests/fidelity compares the numbers."""

import json

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qgoft.errors import QgoftError
from qgoft.tuners.goft.convert import convert_directory, convert_state, variant_of

WIDTHS = {"first": 12, "second": 7}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 7), nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


def toy():
    torch.manual_seed(0)
    return Toy().eval()


def released_state(variant):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    state = {}
    for layer, d in WIDTHS.items():
        name = f"base_model.model.{layer}"
        if variant == "qgoft":
            state[f"{name}.givens_soft"] = torch.eye(2) + 0.2 * draw(d - 1, 2, 2)
        else:
            state[f"{name}.givens_hard"] = 0.3 * draw(d - 1)
        if variant == "goft_star":
            state[f"{name}.givens_scaler"] = 1 + 0.2 * draw(d)
    return state


def write(directory, variant, *, kind="safetensors", **changes):
    directory.mkdir()
    switches = {"goft": (True, True), "goft_star": (True, False), "qgoft": (False, False)}[variant]
    config = {
        "peft_type": "GIVENS",
        "strict_oft": switches[0],
        "no_scaling": switches[1],
        "target_modules": list(WIDTHS),
        "base_model_name_or_path": "toy",
        "task_type": None,
    }
    (directory / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    state = released_state(variant)
    if kind == "safetensors":
        save_file(state, directory / "adapter_model.safetensors")
    else:
        torch.save(state, directory / "adapter_model.bin")
    return state


def test_convert_keeps_the_head(tmp_path):
    write(tmp_path / "theirs", "goft", modules_to_save=["head"])
    state = {**released_state("goft"), "base_model.model.head.weight": torch.ones(2, 5), "base_model.model.head.bias": torch.zeros(2)}
    save_file(state, tmp_path / "theirs" / "adapter_model.safetensors")
    convert_directory(tmp_path / "theirs", tmp_path / "ours", "first")
    model = peft.PeftModel.from_pretrained(toy(), tmp_path / "ours")
    assert torch.equal(model.base_model.model.head.modules_to_save["default"].weight, torch.ones(2, 5))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["goft", "goft_star", "qgoft"])
def test_convert_both_file_formats(variant, kind, tmp_path):
    state = write(tmp_path / "theirs", variant, kind=kind)
    assert convert_directory(tmp_path / "theirs", tmp_path / "ours", "first") == variant
    model = peft.PeftModel.from_pretrained(toy(), tmp_path / "ours")
    for layer in WIDTHS:
        store = model.base_model.model.get_submodule(layer).get_parameter_of("default")
        part = "soft" if variant == "qgoft" else "hard"
        assert torch.equal(store, state[f"base_model.model.{layer}.givens_{part}"])


@pytest.mark.parametrize("release", [None, "third", ""])
def test_convert_needs_the_release(release, tmp_path):
    write(tmp_path / "theirs", "goft")
    with pytest.raises(QgoftError, match="expected first or second; name the release that trained the adapter"):
        convert_directory(tmp_path / "theirs", tmp_path / "ours", release)
    assert not (tmp_path / "ours").exists()


def test_convert_second_release_with_scaler_is_refused(tmp_path):
    write(tmp_path / "theirs", "goft_star")
    with pytest.raises(QgoftError, match=r"expected no_scaling=true \(goft_v2\) or strict_oft=false \(qgoft_v2\)"):
        convert_directory(tmp_path / "theirs", tmp_path / "ours", "second")


def test_convert_release_flags():
    assert variant_of({}) == "goft_star"  # the release's default
    assert variant_of({"strict_oft": True, "no_scaling": True}) == "goft"
    assert variant_of({"strict_oft": False, "no_scaling": True}) == "qgoft"


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        (
            "goft",
            {"base_model.model.first.givens_scaler": torch.ones(12)},
            r"first has givens_hard, givens_scaler; .*says goft has givens_hard",
        ),
        ("goft_star", {"base_model.model.first.givens_scaler": None}, r"first has givens_hard; .*says goft_star"),
        (
            "goft_star",
            {"base_model.model.first.givens_scaler": torch.ones(11)},
            r"givens_scaler has shape \[11\]; a layer of width 12 has \[12\]",
        ),
        ("qgoft", {"base_model.model.first.givens_soft": torch.ones(11, 4)}, r"shape \[11, 4\]; a layer of width 12 has \[11, 2, 2\]"),
    ],
)
def test_convert_inconsistent_files(variant, change, message):
    state = {name: tensor for name, tensor in {**released_state(variant), **change}.items() if tensor is not None}
    with pytest.raises(QgoftError, match=message):
        convert_state(state, variant)


def test_convert_missing_directories(tmp_path):
    with pytest.raises(QgoftError, match=r"no readable adapter_config.json"):
        convert_directory(tmp_path, tmp_path / "ours", "first")
    write(tmp_path / "theirs", "goft")
    (tmp_path / "theirs" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(QgoftError, match=r"no readable adapter_model.safetensors or .bin"):
        convert_directory(tmp_path / "theirs", tmp_path / "ours", "first")
    with pytest.raises(QgoftError, match="not an adapter of peft-givens"):
        convert_state({"lora_A": torch.ones(1)}, "goft")


def test_convert_refuses_pickle_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    write(tmp_path / "theirs", "goft", kind="bin")
    torch.save({"base_model.model.first.givens_hard": Trap()}, tmp_path / "theirs" / "adapter_model.bin")
    with pytest.raises(QgoftError, match="no readable adapter_model"):
        convert_directory(tmp_path / "theirs", tmp_path / "ours", "first")
