"""Sharded training: FSDP2 equals unsharded training; unsupported setups are refused. accelerate uses FSDP on GPUs only, so the workers set
its state; sharding, collectives and this project's code are real, on gloo. DeepSpeed is not installed here: its settings are tested, and
docs/LOG.md compares its training."""

import gzip
import json
import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from qgoft.config.compose import compose_settings
from qgoft.config.locations import CONFIGS
from qgoft.errors import QgoftError
from qgoft.train import loop
from qgoft.train import prepare as prepare_module
from qgoft.train import run as run_module
from qgoft.train.distributed import check_sharding
from qgoft.train.interrupts import Stopped
from tests._processes import join_run, run_in_two

WORDS = ["task=math/gsm8k", "train.max_steps=4", "train.num_evals=2", "train.gradient_accumulation_steps=2", "task.options.new_tokens=4"]


def divide(accelerator):
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False, reshard_after_forward=True
    )
    assert accelerator.is_fsdp2
    return accelerator


def worker(rank, port, root, method):
    join_run(rank, port)
    build = prepare_module.build_accelerator
    for is_sharded in (False, True):
        if is_sharded:
            prepare_module.build_accelerator = lambda settings: divide(build(settings))
        run_module.run(compose_settings([f"results.root={root / str(is_sharded)}", f"method={method}", *WORDS]))
        torch.distributed.barrier()
    os._exit(0)  # without destructors, see test_parallel_and_compiled.py


def found(root):
    (directory,) = (root / "runs").iterdir()
    record = json.loads((directory / "record.json").read_text())
    with gzip.open(directory / "predictions.jsonl.gz") as lines:
        predictions = [json.loads(line) for line in lines]
    history = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    (weights,) = (directory / "adapter").glob("*.safetensors")
    return record, predictions, history, load_file(weights)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qgoft", "full"])
def test_sharded_training_equals_unsharded(method, tmp_path):
    """Also after an evaluation during training, for which the weights are gathered and sharded again."""
    run_in_two(worker, tmp_path, method)
    unsharded, divided = found(tmp_path / "False"), found(tmp_path / "True")
    assert divided[0]["status"] == "done"
    assert divided[0]["key"] == unsharded[0]["key"]
    assert divided[0]["metrics"] == unsharded[0]["metrics"]
    assert divided[1] == unsharded[1]
    for ours, theirs in zip(divided[2], unsharded[2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert divided[3].keys() == unsharded[3].keys()
    for name, tensor in divided[3].items():
        torch.testing.assert_close(tensor, unsharded[3][name], rtol=1e-3, atol=1e-4)


def resuming_worker(rank, port, root):
    """One sharded run without interruption, and one that rank 0 interrupts in its third backward pass."""
    join_run(rank, port)
    build = prepare_module.build_accelerator
    prepare_module.build_accelerator = lambda settings: divide(build(settings))
    words = ["method=qgoft", "results.checkpoint_interval=0", *WORDS]
    run_module.run(compose_settings([f"results.root={root / 'whole'}", *words]))
    torch.distributed.barrier()
    calls, backward = [], loop.backward

    def interrupted(*arguments):
        calls.append(1)
        if rank == 0 and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        backward(*arguments)

    settings = compose_settings([f"results.root={root / 'resumed'}", *words])
    loop.backward = interrupted
    with suppress(Stopped):
        run_module.run(settings)
    loop.backward = backward
    torch.distributed.barrier()
    run_module.run(settings)
    os._exit(0)


@pytest.mark.slow
def test_sharded_run_resumes_bit_exactly(tmp_path):
    run_in_two(resuming_worker, tmp_path)
    whole, resumed = found(tmp_path / "whole"), found(tmp_path / "resumed")
    assert [part["step"] for part in resumed[0]["provenance"]["resumed"]] == [2]
    assert "resumed" not in whole[0]["provenance"]
    assert (resumed[0]["metrics"], resumed[0]["best_checkpoint"]) == (whole[0]["metrics"], whole[0]["best_checkpoint"])
    assert resumed[1:3] == whole[1:3]
    assert resumed[3].keys() == whole[3].keys()
    for name, tensor in whole[3].items():
        assert torch.equal(resumed[3][name], tensor), name


def fake_accelerator(**state):
    return SimpleNamespace(device=torch.device("cuda"), is_fsdp2=False, **state)


def deepspeed(stage):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"})
    return fake_accelerator(distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin))


def test_deepspeed_receives_the_settings():
    accelerator = deepspeed(2)
    check_sharding(accelerator, compose_settings(["train.gradient_accumulation_steps=4", "optim.max_grad_norm=0.5"]), per_process=8)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    assert config["gradient_clipping"] == 0.5
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_micro_batch_size_per_gpu"] == 8


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [(deepspeed(3), "stage 3 shards the weights"), (fake_accelerator(distributed_type=DistributedType.FSDP), "fsdp_version: 2")],
)
def test_sharding_unsupported_setups(accelerator, message):
    with pytest.raises(QgoftError, match=message):
        check_sharding(accelerator, compose_settings([]), per_process=8)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_without_gpu_is_refused(name, monkeypatch):
    """accelerate would ignore it."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(QgoftError, match="this machine has none"):
        check_sharding(SimpleNamespace(device=torch.device("cpu")), compose_settings([]), per_process=8)


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_valid(path):
    config = load_config_from_file(str(path))
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        names = ("auto_wrap_policy", "reshard_after_forward", "cpu_ram_efficient_loading", "state_dict_type", "activation_checkpointing")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **{name: config.fsdp_config[f"fsdp_{name}"] for name in names})
        assert not plugin.cpu_ram_efficient_loading
    else:
        assert config.deepspeed_config["zero_stage"] == 2
