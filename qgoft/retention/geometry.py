"""Geometry of the change, per layer whose weight changes: W [n, d] becomes W' = W + D.

| measure | definition |
| --- | --- |
| energy_change | relative change, in percent, of the hyperspherical energy of the rows: mean of 1 / |w_i - w_j| over pairs of rows scaled to length 1 (Qiu et al., 2023, OFT) |
| angle_change | largest change of the cosine between two rows; zero if the rows are rotated together |
| relative_norm | |D|_F / |W|_F |
| effective_rank | exp of the entropy of the squared singular values of D, scaled to sum 1 |
| stable_rank | |D|_F^2 / |D|_2^2 (PEFT-Arena's effective rank) |
| output_drift | E|D h|^2 / E|W h|^2, with h from the pretrained backbone (PEFT-Arena's CSD) |
| procrustes | |X' Q - X|_F / |X|_F, X and X' the centred outputs of the layer in the pretrained and the tuned backbone, Q the best orthogonal matrix |
| cka | linear CKA of X and X' (Kornblith et al., 2019) |

Sums are in float64. Pairs of rows, and positions of the probe inputs, are sampled with a fixed seed.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qgoft.retention.path import BackbonePath, BottleneckPath

# Positions of an image whose activations are recorded, and of a batch of texts at least.
IMAGE_POSITIONS, BATCH_POSITIONS = 8, 16

Batch = dict[str, Tensor]
Measures = dict[str, float]


def measure_geometry(path: BackbonePath, batches: Iterable[Batch], *, positions: int, weight_rows: int) -> dict[str, Any]:
    """Return `layers` (name -> measures) and `summary` (mean over the layers) of a tuned backbone; both empty if no layer changes.

    Args:
        batches: probe inputs without labels; only as many are run as the positions need. Without inputs only weights are measured.
        positions: positions of the inputs, at most.
        weight_rows: rows of each weight, at most.
    """
    if isinstance(path, BottleneckPath) or not path.layers:
        return {"layers": {}, "summary": {}}
    activations = _activations(path, _select(batches, positions))
    layers: dict[str, Measures] = {}
    for name in path.layers:
        before, after = (weights[f"{name}.weight"].cpu().double() for weights in (path.start, path.end))
        layers[name] = weight_measures(before, after, weight_rows)
        if name in activations and len(activations[name][0]) > 1:
            layers[name] |= activation_measures(before, after, *activations[name])
    names = dict.fromkeys(measure for layer in layers.values() for measure in layer)
    summary = {name: statistics.fmean(layer[name] for layer in layers.values() if name in layer) for name in names}
    return {"layers": layers, "summary": summary}


def weight_measures(before: Tensor, after: Tensor, most: int) -> Measures:
    """Return the measures of two weights [n, d] in float64."""
    rows = _sample(len(before), most)
    cosines = [_cosines(weight[rows]) for weight in (before, after)]
    energies = [hyperspherical_energy(one) for one in cosines]
    change = after - before
    squares = torch.linalg.svdvals(change) ** 2
    shares = squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
    return {
        "energy_change": 100 * (energies[1] / energies[0] - 1),
        "angle_change": (cosines[1] - cosines[0]).abs().max().item(),
        "relative_norm": (change.norm() / before.norm()).item(),
        "effective_rank": torch.special.entr(shares).sum().exp().item(),
        "stable_rank": (squares.sum() / squares.max().clamp_min(torch.finfo(squares.dtype).tiny)).item(),
    }


def hyperspherical_energy(cosines: Tensor) -> float:
    """Return the mean of 1 / |w_i - w_j| over pairs of unit vectors.

    Args:
        cosines: [n, n], between all pairs.
    """
    first, second = torch.triu_indices(len(cosines), len(cosines), 1)
    distances = (2 - 2 * cosines[first, second]).clamp_min(1e-12).sqrt()
    return (1 / distances).mean().item()


def activation_measures(before: Tensor, after: Tensor, inputs: Tensor, outputs: Tensor, tuned: Tensor) -> Measures:
    """Return the measures of the activations of one layer, in float64.

    Args:
        before: W [n, d].
        after: W' [n, d].
        inputs: inputs in the pretrained backbone [positions, d].
        outputs: outputs in the pretrained backbone [positions, n].
        tuned: outputs in the tuned backbone [positions, n].
    """
    drift = (inputs @ (after - before).T).square().sum() / (inputs @ before.T).square().sum()
    x, y = outputs - outputs.mean(0), tuned - tuned.mean(0)
    norms = x.square().sum(), y.square().sum()
    # The residual of the best orthogonal Q: |X|^2 + |Y|^2 - 2 * sum of the singular values of Y^T X.
    residual = (norms[0] + norms[1] - 2 * torch.linalg.svdvals(y.T @ x).sum()).clamp_min(0)
    cka = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    return {"output_drift": drift.item(), "procrustes": (residual / norms[0]).sqrt().item(), "cka": cka.item()}


def _cosines(weight: Tensor) -> Tensor:
    unit = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit @ unit.T


def _sample(count: int, most: int) -> Tensor:
    """Return the sorted numbers of at most some of `count` items."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def _select(batches: Iterable[Batch], most: int) -> list[tuple[Batch, Tensor]]:
    """Return batches with the positions of their inputs to record, as a mask [rows, length]: of each batch a sixteenth of all positions, or 16.

    Positions of padding are left out. Images have no mask, and their number of positions is known only inside the model: the mask is empty.
    """
    random, chosen, seen = torch.Generator().manual_seed(0), [], 0
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones(1, 0)).bool()
        places = mask.nonzero()
        kept = places[torch.randperm(len(places), generator=random)[: max(BATCH_POSITIONS, most // 16)]]
        part = torch.zeros_like(mask)
        part[kept[:, 0], kept[:, 1]] = True
        chosen.append((batch, part))
        seen += len(kept) if mask.numel() else most // 16
        if seen >= most:
            break
    return chosen


def _activations(path: Any, batches: Sequence[tuple[Batch, Tensor]]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return layer -> inputs [positions, d] and outputs [positions, n] in the pretrained backbone, and outputs in the tuned one, in float64.

    Calls of a layer with other inputs than the sequence (the relative positions of DeBERTa) are left out.
    """
    with path.at(0.0) as model:
        recorded = _record(model, path.layers, batches)
    with path.at(1.0) as model:
        tuned = _record(model, path.layers, batches)
    return {name: (*recorded[name], tuned[name][1]) for name in path.layers if name in recorded}


@torch.no_grad()
def _record(model: nn.Module, layers: dict[str, nn.Module], batches: Sequence[tuple[Batch, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer -> inputs and outputs at the chosen positions of some batches, in float64 on the CPU."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    chosen = torch.ones(1, 0)

    def hook(name: str) -> Any:
        def record(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if not chosen.numel():  # images: of every row some positions
                stride = max(1, given[0].shape[1] // IMAGE_POSITIONS)
                found[name].append((_rows(given[0][:, ::stride]), _rows(output[:, ::stride])))
            elif given[0].shape[:2] == chosen.shape:
                found[name].append((_rows(given[0][chosen]), _rows(output[chosen])))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    device = next(model.parameters()).device
    try:
        for batch, part in batches:
            chosen = part.to(device)
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    return {name: (torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])) for name, pairs in found.items()}


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1]).double().cpu()
