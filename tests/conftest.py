"""Shared fixtures. No test uses a network beyond the loopback interface."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")
# Triton reads it on first import: without a GPU its kernels run in the interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Under `make test`, each make that a test starts would be a sub-make, which prints directories.
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(_name, None)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    if importlib.util.find_spec("datasets") is None:
        return  # make test-oldest: the adapter's dependencies only
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def shared() -> Path:
    """Return the directory of real benchmark rows; skip if it is missing."""
    directory = REPOSITORY.parent / "shared"
    if not (directory / "data" / "glue").is_dir():
        pytest.skip("needs the shared directory with real benchmark rows; tests/tasks cover the same code on made-up rows")
    return directory
