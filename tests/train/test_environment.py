"""Environment variables that affect results are refused before a run starts."""

import pytest

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.train.environment import REFUSED
from qgoft.train.prepare import build_accelerator


def refuse(monkeypatch, variables, *words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(QgoftError) as caught:
        build_accelerator(compose_settings(list(words)))
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_environment_variables_are_refused(monkeypatch, name):
    assert refuse(monkeypatch, {name: "1"}) == f"{name}=1 in the environment changes results, which no record would state; unset {name}"


@pytest.mark.parametrize("value", ["", "no", "0", "FALSE"])
def test_environment_variables_disabled(monkeypatch, value):
    monkeypatch.setenv("USE_HUB_KERNELS", value)
    assert build_accelerator(compose_settings([])).num_processes == 1


def test_environment_gradient_accumulation(monkeypatch):
    said = refuse(monkeypatch, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    assert said.startswith("train.gradient_accumulation_steps=1, but accelerate uses 4, from ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    build_accelerator(compose_settings(["train.gradient_accumulation_steps=2"]))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is in the environment, but not RANK"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x in the environment is not a number"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 is in the environment and WORLD_SIZE is 1"),
        ({"PMI_SIZE": "8"}, "unset PMI_SIZE, or set NPROC"),
    ],
)
def test_environment_of_another_launcher(monkeypatch, variables, message):
    monkeypatch.delenv("RANK", raising=False)
    assert message in refuse(monkeypatch, variables)
