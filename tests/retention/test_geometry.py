"""Measures of the geometry of a change, on matrices whose values are known."""

import math

import pytest
import torch

from qgoft.retention.geometry import activation_measures, hyperspherical_energy, measure_geometry, weight_measures
from tests.methods.test_methods import ids
from tests.retention.test_path import tuned


def rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def weight(n=20, d=12):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_energy_of_orthogonal_rows():
    """All distances of orthonormal rows are sqrt(2)."""
    assert hyperspherical_energy(torch.eye(5, dtype=torch.float64)) == pytest.approx(1 / math.sqrt(2))


def test_rotated_rows_keep_energy_and_angles():
    w = weight()
    found = weight_measures(w, w @ rotation(12), 512)
    assert abs(found["energy_change"]) < 1e-10
    assert found["angle_change"] < 1e-12
    assert found["relative_norm"] > 0.5


def test_rank_of_the_change():
    w = weight()
    u, v = torch.ones(20, dtype=torch.float64), torch.ones(12, dtype=torch.float64)
    one = weight_measures(w, w + 0.1 * torch.outer(u, v), 512)
    assert one["effective_rank"] == pytest.approx(1)
    assert one["stable_rank"] == pytest.approx(1)
    change = torch.zeros(20, 12, dtype=torch.float64)
    change[torch.arange(4), torch.arange(4)] = 0.3
    four = weight_measures(w, w + change, 512)
    assert four["effective_rank"] == pytest.approx(4)
    assert four["stable_rank"] == pytest.approx(4)
    assert four["relative_norm"] == pytest.approx(0.6 / w.norm().item())


def test_angle_change_of_one_row():
    w = torch.eye(3, dtype=torch.float64)
    after = w.clone()
    after[0] = torch.tensor([1.0, 1.0, 0.0])
    assert weight_measures(w, after, 512)["angle_change"] == pytest.approx(math.sqrt(0.5))


def test_rows_are_sampled():
    w = weight(300)
    assert weight_measures(w, w + 0.01, 50)["angle_change"] <= weight_measures(w, w + 0.01, 512)["angle_change"]


def test_activation_measures():
    w, x = weight(6, 12), torch.randn(200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs = x @ w.T
    rotated = activation_measures(w, 1.1 * w, x, outputs, outputs @ rotation(6, 3))
    assert rotated["output_drift"] == pytest.approx(0.01)
    assert rotated["procrustes"] < 1e-6
    assert rotated["cka"] == pytest.approx(1)
    scaled = activation_measures(w, w, x, outputs, 2 * outputs)
    assert scaled["output_drift"] == 0
    assert scaled["procrustes"] == pytest.approx(1)  # |2X - X| / |X|
    assert scaled["cka"] == pytest.approx(1)
    other = activation_measures(w, w, x, outputs, torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    assert other["cka"] < 0.5


@pytest.mark.parametrize(("method", "is_rotation"), [("goft", True), ("oft", True), ("qgoft", False), ("lora", False)])
def test_geometry_of_methods(method, is_rotation):
    """Row angles and hyperspherical energy are exactly kept by GOFT and OFT, up to the rounding of float32 weights."""
    _, path = tuned(method)
    batches = [{"input_ids": ids(), "attention_mask": torch.ones_like(ids())}]
    found = measure_geometry(path, batches, positions=30, weight_rows=512)
    assert set(found["layers"]) == set(path.layers)
    assert len(path.layers) == 18
    summary = found["summary"]
    assert (summary["angle_change"] < 1e-5) == is_rotation
    assert (abs(summary["energy_change"]) < 1e-4) == is_rotation
    assert summary["output_drift"] > 0
    assert 0 < summary["procrustes"] < 1
    assert 0.5 < summary["cka"] < 1


def test_padding_does_not_matter():
    _, path = tuned("lora")
    tokens = ids()
    mask = torch.ones_like(tokens)
    padded = {"input_ids": torch.nn.functional.pad(tokens, (0, 5)), "attention_mask": torch.nn.functional.pad(mask, (0, 5))}
    plain = measure_geometry(path, [{"input_ids": tokens, "attention_mask": mask}], positions=10**6, weight_rows=512)
    other = measure_geometry(path, [padded], positions=10**6, weight_rows=512)
    assert other["summary"] == pytest.approx(plain["summary"], rel=1e-3)


def test_method_without_weights_has_no_geometry():
    _, path = tuned("h_adapter")
    assert measure_geometry(path, [], positions=10, weight_rows=10) == {"layers": {}, "summary": {}}
