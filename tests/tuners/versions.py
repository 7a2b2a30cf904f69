"""Marks for tests of what the oldest supported versions of peft and torch lack (make test-oldest)."""

import peft
import pytest
import torch
from packaging.version import Version

TORCH = Version(Version(torch.__version__).base_version)
OLD_PEFT_FREEZES = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.21"), reason="peft before 0.21 freezes the active adapter when another one is loaded"
)
HAS_FSDP2 = Version("2.6") <= TORCH
COMPILES_PEFT = pytest.mark.skipif(Version("2.6") > TORCH, reason="torch before 2.6 cannot compile peft's models as one graph")
