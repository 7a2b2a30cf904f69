"""Shared fixtures. No test reaches a network beyond the loopback interface."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")
# Triton reads it when it is first imported: without a GPU its kernels run in the interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    from qgoft.train.quiet import quiet_libraries

    quiet_libraries()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def shared() -> Path:
    """Real benchmark rows, where a developer or CI has them beside the project."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "glue").is_dir():
        pytest.skip("needs the shared folder with real benchmark rows; tests/tasks cover the same code on made-up rows")
    return folder
