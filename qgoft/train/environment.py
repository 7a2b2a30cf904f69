"""Environment variables that would change results without being a setting. A run rejects them."""

import os

from accelerate import Accelerator

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.run_id import world_size

# Each changes what accelerate, torch or transformers compute, and neither key nor record would state it.
REFUSED = (
    *("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DOWNCAST_BF16", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "USE_HUB_KERNELS", "XLA_USE_BF16", "XLA_DOWNCAST_BF16"),
)
OFF = ("", "0", "no", "false", "off")
# Number of processes under launchers other than torchrun; accelerate reads them too.
WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_environment() -> None:
    """Reject variables that change results, and leftovers of another launcher's distributed run.

    Raises:
        QgoftError: names the variable.
    """
    for name in REFUSED:
        value = os.environ.get(name, "")
        if value.lower() not in OFF:
            raise QgoftError(f"{name}={value} in the environment changes results, which no record would state; unset {name}")
    size = world_size()
    missing = [name for name in OF_TORCHRUN if name not in os.environ]
    if size > 1 and missing:
        raise QgoftError(
            f"WORLD_SIZE={size} is in the environment, but not {missing[0]}: another launcher has set it; unset WORLD_SIZE, or start {size} "
            f"processes with NPROC={size}"
        )
    for name in WORLD_SIZES:
        if os.environ.get(name, "1") not in ("1", str(size)):
            raise QgoftError(
                f"{name}={os.environ[name]} is in the environment and WORLD_SIZE is {size}: runs in several processes are started by torchrun; unset "
                f"{name}, or set NPROC"
            )


def check_accelerator(accelerator: Accelerator, settings: RunSettings) -> None:
    """Check that accelerate uses the settings of the run instead of its own environment variables or configuration file.

    Raises:
        QgoftError: names the setting, both values and the variable.
    """
    for name, used, wanted, variable in (
        (
            "train.gradient_accumulation_steps",
            accelerator.gradient_accumulation_steps,
            settings.train.gradient_accumulation_steps,
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        ),
        ("train.mixed_precision", accelerator.mixed_precision, settings.train.mixed_precision, "ACCELERATE_MIXED_PRECISION"),
    ):
        if used != wanted:
            raise QgoftError(f"{name}={wanted}, but accelerate uses {used}, from {variable} in the environment; unset {variable}")
