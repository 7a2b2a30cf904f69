"""torch.compile without a graph break, DistributedDataParallel, and FSDP2: the same losses and parameters as one plain process."""

import os

import peft
import pytest
import torch
from torch import nn

import qgoft  # noqa: F401  (registers the tuner)
from qgoft.tuners import GoftConfig
from qgoft.tuners.trainer_callback import add_penalty_gradient
from tests._processes import run_in_two
from tests.tuners.test_factor_cache import Stack, rows
from tests.tuners.versions import COMPILES_PEFT, HAS_FSDP2

STEPS = 3


def make(variant="qgoft"):
    torch.manual_seed(0)
    return peft.get_peft_model(Stack(), GoftConfig(variant=variant, target_modules=["up", "down"], init_weights=False))


def train(model, batches, weight=0.0):
    """Return the losses of a few AdamW steps; each batch [n, 12]. With a weight, the callback's penalty and clipping."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for batch in batches:
        loss = model(batch).square().mean()
        loss.backward()
        if weight:
            add_penalty_gradient(model, weight)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def batches(ranks=1):
    """Return every rank's share of the same global batches."""
    return [[torch.cat([rows(10 * step + r) for r in range(2)]).chunk(ranks)[rank] for step in range(STEPS)] for rank in range(ranks)]


@COMPILES_PEFT
@pytest.mark.parametrize("variant", ["goft", "goft_star", "qgoft", "goft_v2"])
def test_compiles_as_one_graph(variant):
    plain, compiled = make(variant), make(variant)
    losses = train(torch.compile(compiled, fullgraph=True, backend="aot_eager"), batches()[0])
    assert losses == pytest.approx(train(plain, batches()[0]), rel=1e-5)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def worker(rank, port, kind, weight, result):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = make()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for block in model.base_model.model.layers:
            fully_shard(block, mesh=mesh, reshard_after_forward=kind == "fsdp2")
        fully_shard(model, mesh=mesh)
    losses = torch.tensor(train(model, batches(2)[rank], weight))
    torch.distributed.all_reduce(losses)
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters() if p.requires_grad]
    if rank == 0:
        torch.save({"losses": losses / 2, "parameters": [p.detach().clone() for p in parameters]}, result)
    torch.distributed.barrier()
    # Without destructors: gloo's group destructor can wait for a thread while it holds the interpreter's lock.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "weight"), [("ddp", 0.0), ("ddp", 2.0), ("fsdp2", 0.0), ("fsdp2", 2.0), ("fsdp2 kept whole", 0.0)])
def test_two_processes_equal_one(kind, weight, tmp_path):
    if kind.startswith("fsdp2") and not HAS_FSDP2:
        pytest.skip("torch before 2.6 has no fully_shard")
    plain = make()
    expected = train(plain, batches()[0], weight)
    result = tmp_path / "result.pt"
    run_in_two(worker, kind, weight, result)
    found = torch.load(result, weights_only=True)
    assert found["losses"].tolist() == pytest.approx(expected, rel=1e-4)
    trained = [p for p in plain.parameters() if p.requires_grad]
    for ours, theirs in zip(found["parameters"], trained, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-4)
