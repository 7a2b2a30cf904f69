"""Preparation of a run: data, model, method and accelerator, and checks that they match."""

import dataclasses
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.lease import Lease
from qgoft.methods import apply_method
from qgoft.models import check_fit
from qgoft.run_id import RunId
from qgoft.tasks.base import TextSuite
from qgoft.tasks.registry import build_suite
from qgoft.train.distributed import check_sharding
from qgoft.train.environment import check_accelerator, check_environment
from qgoft.train.memory import keep_freed_memory
from qgoft.train.optim import check_schedule, count_steps
from qgoft.train.record import RunContext
from qgoft.train.resources import check_resources
from qgoft.train.shared_training import from_main

# Processes of a run wait this long for each other; if one fails, torchrun ends all of them.
PROCESS_TIMEOUT = timedelta(days=2)


def prepare(settings: RunSettings, run_id: RunId, lease: Lease | None = None) -> RunContext:
    """Load data, model and method, and check that they match.

    Args:
        run_id: identity of the run with the directory to write to. All processes use that of the main process.
        lease: held by the main process while the run is recorded.

    Raises:
        QgoftError: something does not match.
    """
    if settings.data.source == "pocket":
        keep_freed_memory()
    accelerator = build_accelerator(settings)
    run_id = dataclasses.replace(run_id, directory=from_main(run_id.directory, accelerator))
    set_seed(settings.seed)
    suite = build_suite(settings, run_id)
    if settings.train.group_by_length and suite.train_lengths is None:
        raise QgoftError(f"train.group_by_length=true: the rows of suite {settings.task.suite} have no lengths; omit it")
    model = suite.build_model(settings, run_id.model.directory)
    if isinstance(suite, TextSuite):
        check_fit(suite.tokenizer, model, settings.train.max_length, settings.model.name)
    if settings.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    per_process = _batch_per_process(settings, accelerator)
    batches, rest = divmod(len(suite.train), per_process * accelerator.num_processes)
    batches += rest > 0 and not settings.train.drop_last
    if not batches:
        raise QgoftError(
            f"{settings.task.full_name} has {len(suite.train)} training rows and train.batch_size is {settings.train.batch_size}: with "
            "train.drop_last=true no batch remains; reduce train.batch_size, or set train.drop_last=false"
        )
    total, per_epoch = count_steps(settings.train, batches)
    check_schedule(settings.train, settings.optim, total, per_epoch)
    adapted = apply_method(model, suite.model_settings(settings), settings.method, total_steps=total)
    check_resources(adapted, settings, accelerator)
    return RunContext(settings, run_id, suite, adapted, accelerator, lease)


def build_accelerator(settings: RunSettings) -> Accelerator:
    """Build the Accelerator of a run, and check that it follows the settings.

    Raises:
        QgoftError: the machine or the environment does not match the settings.
    """
    check_environment()
    # accelerate keeps the precision of the first Accelerator of a process, but a sweep worker executes many runs.
    AcceleratorState._reset_state()
    on_cpu = not torch.cuda.is_available()
    if settings.train.mixed_precision == "fp16" and on_cpu:
        # accelerate would silently train in float32
        raise QgoftError("train.mixed_precision=fp16 does not work on this machine, which has no CUDA device; use no or bf16")
    accelerator = Accelerator(
        cpu=on_cpu,  # otherwise several processes would each look for a device
        mixed_precision=settings.train.mixed_precision,
        gradient_accumulation_steps=settings.train.gradient_accumulation_steps,
        # One process may wait for a training by another run, or for a judge, while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
    )
    check_accelerator(accelerator, settings)
    check_sharding(accelerator, settings, _batch_per_process(settings, accelerator))
    return accelerator


def _batch_per_process(settings: RunSettings, accelerator: Accelerator) -> int:
    size, processes = settings.train.batch_size, accelerator.num_processes
    if size % processes:
        raise QgoftError(f"train.batch_size={size} is not divisible by {processes} processes; change train.batch_size or NPROC")
    return size // processes


def train_loader(context: RunContext) -> DataLoader:
    """Return the training batches, shuffled by the seed of the run."""
    suite, train = context.suite, context.settings.train
    generator = torch.Generator().manual_seed(context.settings.seed)
    size = _batch_per_process(context.settings, context.accelerator)
    if train.group_by_length:
        assert suite.train_lengths is not None
        # Groups of a whole step, so that the order of the rows does not depend on how a step is divided.
        sampler = LengthGroupedSampler(
            train.batch_size * train.gradient_accumulation_steps, lengths=suite.train_lengths, generator=generator
        )
        return DataLoader(suite.train, batch_size=size, sampler=sampler, drop_last=train.drop_last, collate_fn=suite.collate)
    return DataLoader(suite.train, batch_size=size, shuffle=True, drop_last=train.drop_last, collate_fn=suite.collate, generator=generator)
