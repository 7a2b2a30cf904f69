"""The benchmark: counts of bytes, contenders, and tables."""

import argparse
import gc
import importlib
import json
import multiprocessing
import re
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from qgoft import cli as _ending
from qgoft.bench import contenders as contenders
from qgoft.bench import measure, shapes
from qgoft.bench.baseline_products import mix_neighbours_by_level, mix_sparse
from qgoft.bench.memory import LiveBytes, peak_bytes, saved_bytes
from qgoft.commands import bench as command
from qgoft.methods.registry import find_targets
from qgoft.ops import givens
from qgoft.ops.givens import factors
from qgoft.report import bench as report
from qgoft.report import cost
from qgoft.report.charts import bench_figures
from qgoft.report.published import load_figures
from tests.ops.test_givens import random_blocks, random_rows

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = REPOSITORY / "results" / "measured" / "bench"
SMALL = [shapes.layer(64, 96, 2, 4, of="test"), shapes.block(64, 4, 4, 6)]


@pytest.fixture
def script(repository):
    return importlib.reload(command)


def test_live_bytes_track_allocations():
    kept = torch.zeros(1000)
    with LiveBytes([kept]) as mode:
        assert mode.now == 4000
        a = kept + 1
        b = a.view(10, 100).T
        assert mode.now == 8000, "a view is no new memory"
        c = a * 2
        del a, b
        assert mode.now == 8000
        del c
    assert (mode.now, mode.peak) == (4000, 12000)


def test_live_bytes_include_backward():
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes([x]) as mode:
        x.exp().sum().backward()
        assert x.grad is not None
    assert mode.now == 8000
    assert mode.peak >= 12000


def test_saved_bytes_count_storages_once():
    layer = nn.Linear(10, 10)
    x = torch.zeros(5, 10)
    assert saved_bytes(layer, lambda: layer(x).sum()) == x.nbytes
    assert saved_bytes(layer, lambda: (layer(x) + layer(x)).sum()) == x.nbytes


def test_saved_bytes_hook_keeps_no_tensor():
    """The count must not keep an operation alive that saves its own output, as softmax and exp do."""
    x = torch.zeros(1000, requires_grad=True)
    made = []

    def forward():
        made.append(weakref.ref((y := x.exp()).untyped_storage()))
        return y.softmax(0).sum()

    assert saved_bytes(nn.Identity(), forward) >= 8000
    gc.collect()
    assert made[0]() is None


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("d", [2, 7, 64, 100])
def test_sparse_product_equals_operator(d, layout):
    blocks, x = random_blocks(d).requires_grad_(), random_rows(3, d).requires_grad_()
    cotangent = random_rows(3, d, seed=2)
    ours = givens.mix_pairs(x, blocks)
    theirs = mix_sparse(x, blocks, layout=layout)
    for a, b in zip(
        (theirs, *torch.autograd.grad(theirs, (x, blocks), cotangent)),
        (ours, *torch.autograd.grad(ours, (x, blocks), cotangent)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [2, 64, 100])
def test_release_by_levels_equals_release(d):
    blocks, x = random_blocks(d).requires_grad_(), random_rows(3, d).requires_grad_()
    ours, theirs = givens.mix_neighbours(x, blocks), mix_neighbours_by_level(x, blocks)
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, blocks)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SMALL, ids=["layer", "block"])
@pytest.mark.parametrize(
    "contender",
    [contender for contender in contenders.CONTENDERS if not re.search(r"r=\d{3}", contender.name)],
    ids=lambda contender: contender.name,
)
def test_contenders_share_frozen_weights(contender, shape):
    torch.manual_seed(0)
    base = shape.build()
    before = {name: p.clone() for name, p in base.named_parameters()}
    runner = measure.Runner(contender, base, shape, shape.inputs(shape.batch), "cpu")
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name]), f"{contender.name} changed {name}"
        if contender.name != "full":
            assert any(q is p for q in runner.module.parameters())
    assert (runner.timing.trainable == 0) == (contender.name == "frozen")
    assert len(runner.timing.forward) == 0
    runner.repeat()
    assert len(runner.timing.forward) == len(runner.timing.backward) == len(runner.timing.update) == 1


PRINTED_AS = {
    "lora": "lora r=8", "dora": "dora r=8", "adalora": "adalora r=8", "oft": "oft b=32", "boft": "boft b=2 m=2",
    "goft_v2": "goft_v2 as released", "qgoft_v2": "qgoft_v2 as released",
}  # fmt: skip


@pytest.mark.parametrize("item", sorted(cost.PRINTED))
def test_printed_rows_have_contenders(script, item):
    """With the whole batch, whatever memory it needs."""
    paper, table = cost.PRINTED[item]
    mine = [shape for shape in shapes.paper_shapes() if shape.item == f"{paper}/{table}"]
    printed = load_figures(paper, table)
    assert len(mine) == (len(printed["columns"]) if table in ("table21", "table22", "figure4b") else 1)
    for column, shape in enumerate(mine):
        asked = script.contenders_for(shape, None)
        groups = measure.plan_groups(asked, shape.batch, apart=shape.part == "model", divided=False)
        assert {batch for _, batch in groups} == {shape.batch}
        timed = {contender.name for group, _ in groups for contender in group}
        assert timed == {contender.name for contender in asked}
        if table == "figure4b":
            assert any(name.startswith("psoft r=") for name in timed)
        for row, values in printed["rows"].items():
            if (table, row) != ("figure4b", "psoft") and values[column if len(mine) > 1 else 0] is not None:
                assert PRINTED_AS.get(row, row) in timed, shape.name


def test_decoder_shapes_are_published():
    found = {}
    for shape in shapes.paper_shapes():
        if shape.item == "psoft-iclr2026/figure4b":
            with torch.device("meta"):
                model = shape.build()
            found[shape.name] = (len(find_targets(model, shape.targets)), sum(p.numel() for p in model.parameters()))
    small, large = 3_212_749_824, 8_030_261_248
    assert list(found.values()) == [(28 * 3, small), (28 * 7, small), (32 * 2, large), (32 * 5, large)]


def test_qgoft_saves_each_input_once():
    """A block saves one copy of the input of each adapted layer more than frozen layers do. The three projections share one, and the rest
    is at most 1/b of that next to matrices whose size does not depend on the rows."""
    d, shape = 64, shapes.block(64, 4, 64, 32)
    torch.manual_seed(0)
    base, inputs = shape.build(), shape.inputs(shape.batch)
    rows = shape.batch * 32
    kept = {}
    for contender in contenders.CONTENDERS:
        if contender.name in ("frozen", "qgoft", "goft"):
            module = contenders.put_on(contender, base, shape)
            contenders.pass_gradients_below(module, shape)
            kept[contender.name] = saved_bytes(module, lambda module=module: module(**inputs).sum())
    different_inputs = 4 * rows * (d + d + d + 4 * d)
    matrices = 6 * 4 * sum(count * width**2 for width, count in factors.stage_sizes(4 * d)) * 2
    for name in ("qgoft", "goft"):
        assert kept[name] - kept["frozen"] <= different_inputs * (1 + 1 / factors.BLOCK_WIDTH) + matrices


def test_qgoft_peak_is_at_most_loras():
    shape = shapes.block(256, 4, 48, 64)
    torch.manual_seed(0)
    base, inputs = shape.build(), shape.inputs(shape.batch)
    by_name = {contender.name: contender for contender in contenders.CONTENDERS}
    peaks = {name: measure.Runner(by_name[name], base, shape, inputs, "cpu").timing.peak_bytes for name in ("qgoft", contenders.REFERENCE)}
    assert peaks["qgoft"] <= peaks[contenders.REFERENCE]


def test_peak_bytes_stateless_step():
    x = torch.zeros(1000)
    assert peak_bytes([x], lambda: x + 1, "cpu") == 8000


def test_groups_contain_the_reference():
    def names(groups):
        return [([contender.name for contender in group], batch) for group, batch in groups]

    by_name = {contender.name: contender for contender in contenders.CONTENDERS}
    some = [by_name[name] for name in ("frozen", "lora r=8", "qgoft", "qgoft_v2 as released")]
    last = (["lora r=8", "qgoft_v2 as released"], 4)
    assert names(measure.plan_groups(some, 16, apart=False)) == [(["lora r=8", "frozen", "qgoft"], 16), last]
    assert names(measure.plan_groups(some, 16, apart=True)) == [(["lora r=8", "frozen"], 16), (["lora r=8", "qgoft"], 16), last]


def test_products_are_timed_to_their_width(monkeypatch):
    monkeypatch.setattr(contenders, "BYTES_OF_ROWS", 4 * 5 * 64)
    monkeypatch.setattr(measure, "PRODUCTS", [*contenders.PRODUCTS[:5], contenders.Product("short", lambda rows, *_: rows.clone(), 16)])
    found = measure.measure_products([16, 32], 5, 2, "cpu", lambda line: None)
    assert [(line["width"], line["name"]) for line in found if line["name"] in ("copy", "short")] == [
        (16, "copy"),
        (16, "short"),
        (32, "copy"),
    ]
    assert all(len(line["seconds"]) == 2 and min(line["seconds"]) > 0 for line in found)


def test_rounds_alternate_contenders():
    assert list(measure.turns(3, 3)) == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_processes_step_in_turns():
    channels, threads = [], []
    by_name = {contender.name: contender for contender in contenders.CONTENDERS}
    for name in ("lora r=8", "qgoft"):
        ours, theirs = multiprocessing.Pipe()
        thread = threading.Thread(target=measure.serve, args=(theirs, SMALL[0], by_name[name], 2, "cpu"))
        thread.start()
        channels.append(ours)
        threads.append(thread)
    found = measure.measure_in_turns(channels, ["a", "b"], 3, lambda line: None)
    for thread in threads:
        thread.join()
    assert [timing["name"] for timing in found] == ["lora r=8", "qgoft"]
    assert all(len(timing["forward"]) == 3 for timing in found)


def timing(name, seconds, batch=8):
    return {
        "name": name,
        "trainable": 10,
        "batch": batch,
        "saved_bytes": 1_000_000,
        "peak_bytes": 2_000_000 if name == "a" else 1_000_000,
        "forward": seconds,
        "backward": seconds,
        "update": [0.0] * len(seconds),
    }


def test_rounds_join_by_repeat():
    first, second = [timing("a", [1.0, 2.0]), timing("b", [3.0, 4.0])], [timing("a", [5.0]), timing("b", [6.0])]
    second[1]["peak_bytes"] = 7_000_000
    joined = measure.join_rounds([first, second])
    assert [line["forward"] for line in joined] == [[1.0, 2.0, 5.0], [3.0, 4.0, 6.0]]
    assert [line["peak_bytes"] for line in joined] == [2_000_000, 7_000_000]
    assert first[0]["forward"] == [1.0, 2.0], "what was measured is left as it was"


def made_up_record():
    groups = [[timing("a", [1.0, 2.0, 1.0]), timing("b", [2.0, 1.0, 2.0])], [timing("a", [1.0] * 3, 2), timing("c", [3.0] * 3, 2)]]
    costs = {"copy": 1, "apply": 1.5, "transpose": 1.25, "gradients": 2, report.WHOLE: 4}
    products = [
        {"width": d, "name": name, "rows": 4, "seconds": [cost * d * 1e-5]} for d in (8, 16, 32) for name, cost in costs.items()
    ] + [{"width": 8, "name": "sparse", "rows": 4, "seconds": [0.032]}]
    line = {"shape": "block of test", "part": "block", "item": "psoft-iclr2026/table22", "groups": groups}
    return {"reference": "a", "products": products, "shapes": [line], "commit": "c" * 40}


def test_table_ratios_are_within_a_repeat(tmp_path):
    record = made_up_record()
    table = report.shape_table(0, record["shapes"][0], record)
    by_name = {row[0]: row for row in table.rows}
    assert by_name["b"][5:7] == ["2.00", "1.25-2.00"], "the median of 2, 0.5 and 2"
    assert by_name["b"][-1] == "0.50"
    assert by_name["c, batch 2"][5] == "3.00", "against the reference with the same part of the batch"
    product = report.product_table(record)
    assert product.notes[-1] == "cost of the product grows as d^1.00 from 8 to 32"
    copies = ["1.50 (1.50-1.50)", "1.25 (1.25-1.25)", "2.00 (2.00-2.00)"]
    assert product.rows[-1] == ["32", "0.32", "0.48", "0.40", "0.64", *copies, "-"]
    assert product.rows[0][-1] == "100"
    published = report.published_tables(record)[0]
    assert ["qgoft_v2", "22.5", "44.7", "oom"] in published.rows
    drawn = [path for figure in bench_figures(record) for path in figure.write(tmp_path)]
    assert {path.name for path in drawn} == {f"bench-{name}.{suffix}" for name in ("cost", "width") for suffix in ("svg", "pdf", "png")}
    assert all(path.stat().st_size > 1000 for path in drawn)


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_bench_states_its_machine(path):
    record = json.loads(path.read_text())
    assert record["hardware"]["processor"]
    assert record["commit"]
    assert not record["dirty"]
    for line in record["shapes"]:
        for group in line["groups"]:
            assert {len(t[phase]) for t in group for phase in ("forward", "backward", "update")} == {record["repeats"]}
    assert report.all_tables(record)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "gpu"], "allowed are cpu, device, paper"),
        (["--parts", "lyer"], "unknown part"),
        (["--contenders", "loar"], "unknown contender"),
        (["--contenders", "lora"], "expected the form r<"),
    ],
)
def test_bench_unknown_argument(script, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        _ending.run_cli(lambda: script.main(words))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert message in said


def test_bench_continues_after_out_of_memory(script, monkeypatch, tmp_path):
    def time_group(function, shapes, name, *arguments):
        if "4096" in name:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB\nmore lines")
        return [{"name": "lora r=8", "batch": 2}]

    monkeypatch.setattr(script, "in_own_process", time_group)
    monkeypatch.setattr(script, "plan_groups", lambda contenders, batch, **_: [(contenders, batch)])
    monkeypatch.setitem(script.SETS, "cpu", lambda: [shapes.layer(d, d, 2, 8, of="a test") for d in (4096, 64)])
    arguments = argparse.Namespace(set="cpu", parts=["layer"], only=None, contenders=None, repeats=1, threads=1, return_memory=False)
    record = script.run(arguments, tmp_path / "cpu.json")
    assert [line["shape"] for line in record["shapes"]] == ["layer 64 -> 64, 2 x 8 (a test)"]
    (failed,) = record["failed"]
    assert failed["shape"].startswith("layer 4096")
    assert failed["reason"].startswith("OutOfMemoryError: CUDA out of memory")
    assert "\n" not in failed["reason"]


def test_device_check_needs_a_gpu(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        _ending.run_cli(lambda: script.main(["--device-check"]))
    assert end.value.code == 2
    assert "--device-check needs a GPU, and this machine has none" in capsys.readouterr().err


def test_device_check_ends_in_time(script, monkeypatch, tmp_path):
    """The check itself, on a CPU and with its first layer only."""
    first, *_ = shapes.device_shapes()
    monkeypatch.setattr(script, "in_own_process", lambda function, shapes, name, *_: [{"name": "lora r=8", "batch": first.batch}])
    monkeypatch.setattr(script, "DEVICE_LIMIT", 1.0)
    clock = iter([0.0, 0.5, *[2.0] * 9])
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    names = script.DEVICE_CONTENDERS
    arguments = argparse.Namespace(
        set="device", parts=["layer", "model"], only=None, contenders=names, repeats=1, threads=1, return_memory=False
    )
    record = script.run(arguments, tmp_path / "device.json")
    assert [line["shape"] for line in record["shapes"]] == [first.name]
    assert [line["reason"] for line in record["failed"]] == ["1 seconds are over"] * 2


def test_partial_bench_has_its_own_record(script):
    def name(**changed):
        usual = {"set": "cpu", "parts": script.PARTS, "only": None, "contenders": None, "return_memory": False}
        return script.file_name(argparse.Namespace(**{**usual, **changed}))

    assert name() == "cpu"
    assert name(return_memory=True) == "cpu-returned"
    assert name(parts=["model"], only="DeBERTa") == "cpu-model-deberta"
    assert name(set="paper", contenders=["goft", "oft b=32"]) == "paper-goft-oft_b_32"


def test_item_shows_its_shapes_kept_memory_first(tmp_path):
    def write(name, allocator, *items):
        lines = [{"part": "model", "shape": f"DeBERTaV3-base, 12 layers, {item}", "item": item, "groups": []} for item in items]
        (tmp_path / name).write_text(json.dumps({"allocator": allocator, "shapes": lines}))

    write("cpu.json", cost.SYSTEM, None)
    write("kept.json", cost.KEPT, None)
    write("paper.json", cost.KEPT, "psoft-iclr2026/table21", "goft-icml2024/table10")
    found = cost.read_bench([tmp_path / "nothing", tmp_path], "table10", "deberta")
    assert [one.line["item"] for one in found] == [None, "goft-icml2024/table10", None]
    assert [one.record["allocator"] for one in found] == [cost.KEPT, cost.KEPT, cost.SYSTEM]
