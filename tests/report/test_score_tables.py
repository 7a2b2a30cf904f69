"""The score table: measured next to published values, and nothing else."""

import copy
import shutil
import subprocess

import pytest

from qgoft.config.settings import EVAL_SCHEMES, SELECTIONS
from qgoft.config.suites import suite_info, suite_names
from qgoft.records import code_checksum
from qgoft.report.items import ITEMS
from qgoft.report.latex import document, escape, latex_table
from qgoft.report.published import format_value, load_rows
from qgoft.report.row import Row, scores_of
from qgoft.report.score_table import build_table
from qgoft.report.table import Table
from qgoft.report.table_files import write_table
from tests.records.test_records import RECORD

GOFT_TASKS = ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"]


def record(task, value, *, protocol="goft_icml24", method="qgoft", variant=None, seed=0, subset=False, init="pretrained", **changes):
    made = copy.deepcopy(RECORD)
    made.update(
        protocol=protocol, task=task, method=method, variant=variant or method, seed=seed, primary="score", selection="last", **changes
    )
    made["metrics"] = {
        "score": {
            "value": value,
            "higher_is_better": True,
            "n": 100,
            "standard_error": 1.0,
            "majority_baseline": 50.0,
            "computed_by": "qgoft.tasks.metrics.compute_score",
        }
    }
    made["model"] = changes.get("model", "deberta-v3-base")
    made["settings"] = {"model": {"init": init}, "eval_scheme": "validation", "method": {"lr_source": "table 5"}}
    made["provenance"]["data"]["subset"] = subset
    return made


def rows_of(table):
    return {line[0].strip(): line[1:] for line in table.rows}


def test_table_measured_published_difference():
    records = {task: [record(task, 90.0)] for task in GOFT_TASKS}
    table = build_table("glue", "goft_icml24", [Row("qgoft", records)])
    lines = rows_of(table)
    assert lines["qgoft"] == ["10,296", *["90.0"] * 8, "90.0"]
    assert lines["published"] == ["0.33M", "90.17", "96.33", "72.08", "91.34", "94.03", "88.45", "90.69", "91.72", "89.35"]
    assert lines["difference"][1] == "-0.2"
    assert lines["difference"][3] == "+17.9"
    assert lines["difference"][-1] == "+0.7"
    assert lines["majority class"][1] == "50.0"


@pytest.mark.parametrize("splits", EVAL_SCHEMES)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_notes_cover_schemes_and_selections(splits, selection):
    """VTAB under goft_icml24 trains on all thousand rows; that scheme once ended its table in a traceback."""
    made = record("dtd", 70.0)
    made["settings"]["eval_scheme"], made["selection"] = splits, selection
    table = build_table("vtab", "goft_icml24", [Row("qgoft", {"dtd": [made]})])
    assert table.notes[0].startswith("n = 1 seed; ")


def test_missing_cell_prevents_the_average():
    table = build_table("glue", "goft_icml24", [Row("qgoft", {"rte": [record("rte", 80.0)]})])
    line = rows_of(table)["qgoft"]
    assert line.count("-") == 8
    assert line[-1] == "-"


def test_table_spread_over_seeds():
    records = [record("rte", value, seed=seed) for seed, value in enumerate((80.0, 82.0, 84.0))]
    table = build_table("glue", "goft_icml24", [Row("qgoft", {"rte": records})])
    assert "82.0 ±2.0" in rows_of(table)["qgoft"]
    assert table.notes[0].startswith("n = 3 seeds, ± standard deviation over seeds")


def test_pocket_table_has_no_differences():
    table = build_table("glue", "pocket", [Row("qgoft", {"rte": [record("rte", 80.0, protocol="pocket")]})])
    assert "difference" not in rows_of(table)
    assert any("context only" in note and "88.45" in note for note in table.notes)


def test_notes_subsets_commits_and_dirty_code():
    records = [
        record("rte", 80.0, subset=True),
        record("mrpc", 80.0),
    ]
    records[0]["provenance"]["commit"], records[1]["provenance"]["commit"] = "a", "b"
    records[1]["provenance"]["dirty"] = True
    table = build_table("glue", "goft_icml24", [Row("qgoft", {r["task"]: [r] for r in records})])
    assert "qgoft (subset)" in rows_of(table)
    text = " ".join(table.notes)
    assert "not comparable with published" in text
    assert "2 commits" in text
    assert "dirty" in text


def test_notes_mixed_code_packages_devices():
    records = [record("rte", 80.0), record("mrpc", 80.0)]
    one, two = (made["provenance"] for made in records)
    one["code"], two["code"] = code_checksum(), "of another day"
    two["packages"] = {**two["packages"], "torch": "1.0"}
    two["hardware"] = {**two["hardware"], "device": "NVIDIA H100", "threads": 2}
    notes = build_table("glue", "goft_icml24", [Row("qgoft", {r["task"]: [r] for r in records}, others=2)]).notes
    assert "warning: 1 of 2 runs were made by a different version of the code; delete them to rerun" in notes
    assert "warning: these records come from different package versions: torch 1.0, 2.13.0" in notes
    assert "warning: these records come from different devices: NVIDIA H100, cpu" in notes
    assert "warning: these records come from different thread counts, which affects rounding: 1, 2" in notes
    assert any(note.startswith("warning: not shown: 2 runs with the same settings") for note in notes)


@pytest.mark.parametrize(
    ("changes", "altered", "mark"),
    [
        ({"subset": True}, False, "(subset)"),
        ({"selection": "best_reported"}, False, "(best reported)"),
        ({}, True, "(altered)"),
        ({"model": "minilm-l6"}, False, ""),
    ],
)
def test_table_incomparable_has_no_difference(changes, altered, mark):
    made = record("rte", 80.0, **{k: v for k, v in changes.items() if k == "subset"})
    made.update({k: v for k, v in changes.items() if k != "subset"})
    table = build_table("glue", "goft_icml24", [Row("qgoft", {"rte": [made]}, is_altered=altered)])
    lines = rows_of(table)
    assert "difference" not in lines
    assert lines["published"][6] == "88.45"
    assert f"qgoft {mark}".strip() in lines


def test_failed_row_keeps_the_published_value():
    """If the paper prints OOM, so may the measured row."""
    failed = {"cola": [record("cola", 0.0, protocol="psoft_iclr26", method="goft_v2", status="oom")]}
    failed["cola"][0]["params"]["trainable"] = 79_000
    table = build_table("glue", "psoft_iclr26", [Row("goft_v2", {}, planned={"cola": 1}, failed=failed)], item=ITEMS["psoft-table2"])
    lines = rows_of(table)
    assert lines["goft_v2"][:2] == ["79,000", "oom"]
    assert lines["published"][0] == "0.08M"
    assert "difference" not in lines


def test_peak_memory_of_a_shared_training():
    peaks = {"gsm8k": 8 * 2**30, "math": None}
    records = {task: [record(task, 50.0, protocol="psoft_iclr26", method="lora", variant="r8", key=task)] for task in peaks}
    for task, (made,) in records.items():
        made["suite"], made["primary"] = "math", "accuracy"
        made["metrics"] = {"accuracy": made["metrics"]["score"]}
        made["cost"]["peak_memory_bytes"] = peaks[task]
        made["provenance"]["training"] = {"key": "one", "shared": task == "math"}
        made["provenance"]["hardware"] = {**made["provenance"]["hardware"], "device": "cuda"}
    (memory,) = ITEMS["psoft-table4"].extra_columns
    assert scores_of(Row("lora@r8", records), memory) == [pytest.approx(8, rel=0.1)]


def test_differing_count_has_a_reason():
    made = record("cifar", 70.0, method="fact_tt", variant="r16")
    table = build_table("vtab", "goft_icml24", [Row("fact_tt@r16", {"cifar": [made]})])
    assert any(note.startswith("#Param of fact_tt@r16: copied from FacT") for note in table.notes)


def test_published_oom_is_shown():
    table = build_table(
        "glue", "psoft_iclr26", [Row("goft_v2", {"cola": [record("cola", 60.0, protocol="psoft_iclr26", method="goft_v2")]})]
    )
    assert rows_of(table)["published"][2] == "OOM"
    assert rows_of(table)["published"][-1] == "18.50"  # gigabytes
    assert rows_of(table)["difference"][1:] == ["-5.5", *["-"] * 6, ""]


@pytest.mark.parametrize(("method", "variant", "printed"), [("h_adapter", "r8", "90.02"), ("lora", "r2", "90.3"), ("lora", "r8", None)])
def test_published_row_without_variant(method, variant, printed):
    """GOFT prints one row of H-Adapter without its size."""
    table = build_table("glue", "goft_icml24", [Row(method, {"mnli": [record("mnli", 90.0, method=method, variant=variant)]})])
    assert ("published" in rows_of(table)) == (printed is not None)
    if printed:
        assert rows_of(table)["published"][1].startswith(printed)


def test_loss_keeps_printed_decimals():
    """PSOFT's table 16 distinguishes 0.9283 from 0.9276."""
    made = record("gsm8k", 60.0, protocol="psoft_iclr26", method="psoft", suite="math")
    made["best_checkpoint"] = {"step": 5, "score": -0.91573}
    item = ITEMS["psoft-table16"]
    table = build_table("math", "psoft_iclr26", [Row("psoft", {"gsm8k": [made]})], item=item)
    assert "0.9157" in rows_of(table)["psoft"]
    assert {format_value(value) for value in (0.9283, 68.9, 9.0, None, "oom")} == {"0.9283", "68.90", "9.00", "-", "OOM"}


def test_shared_training_costs_once():
    item = ITEMS["psoft-table18"]
    made = [
        record(task, 60.0, protocol="psoft_iclr26", method="psoft", suite="commonsense", key=f"{i:064x}")
        for i, task in enumerate(("boolq", "piqa", "siqa"))
    ]
    for one, (key, seconds) in zip(made, (("t", 60.0), ("t", 60.0), ("u", 180.0)), strict=True):
        one["cost"] |= {"seconds": seconds, "peak_memory_bytes": 5e9}
        one["provenance"]["training"] = {"key": key, "shared": False}
    row = Row("psoft", {one["task"]: [one] for one in made})
    minutes, memory = (next(c for c in item.extra_columns if c.printed == name) for name in ("minutes", "memory_gb"))
    assert sorted(scores_of(row, minutes)) == [1.0, 3.0]
    made[0]["provenance"]["hardware"]["device"] = "cpu"
    assert memory.value(made[0]) is None
    made[0]["provenance"]["hardware"]["device"] = "NVIDIA H200"
    assert memory.value(made[0]) == 5.0


def test_random_backbone_has_no_published_row():
    table = build_table("glue", "goft_icml24", [Row("random + qgoft", {"rte": [record("rte", 50.0, init="random")]})])
    assert "published" not in rows_of(table)


def test_table_without_records():
    assert build_table("glue", "pocket", [Row("qgoft", {})]).notes == ["no finished run yet"]


VTAB = [column.task for column in ITEMS["table3"].columns]


def vtab_row(value, tasks, **changes):
    changes = {"suite": "vtab", "model": "vit-base", **changes}
    return Row("qgoft", {task: [record(task, value, **changes)] for task in tasks})


def test_vtab_average_of_groups():
    row = vtab_row(80.0, VTAB)
    for task in ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"):
        row.records[task] = [record(task, 50.0, suite="vtab", model="vit-base")]
    table = build_table("vtab", "goft_icml24", [row])
    lines = rows_of(table)
    assert table.columns[-4:] == ["Nat", "Spec", "Str", "Avg"]
    assert lines["qgoft"][-4:] == ["80.0", "50.0", "80.0", "70.0"]
    assert lines["published"][-1] == "79.40"
    assert lines["difference"][-1] == "-9.4"


def test_inconsistent_average_has_no_difference():
    """PSOFT prints 67.8 for full fine-tuning, whose mean of groups is 71.1: a run with the same cells would be 3.3 ahead."""
    (printed,) = [row for row in load_rows("psoft-iclr2026", "table3") if row.method == "full"]
    row = vtab_row(80.0, VTAB, protocol="psoft_iclr26", method="full", variant="")
    for task in VTAB:
        row.records[task][0]["metrics"]["score"]["value"] = printed.values[task]
    row.label = "full"
    table = build_table("vtab", "psoft_iclr26", [row])
    lines, average = rows_of(table), table.columns.index("Avg") - 1
    assert lines["published"][average] == "67.80"
    assert lines["difference"][average - 1 : average + 1] == ["+0.0", "-"]
    assert "Avg of full: the printed one is not the mean of the printed cells (make audit), so it is not subtracted" in table.notes


def test_digits_are_not_averaged():
    row = vtab_row(80.0, VTAB, protocol="pocket")
    row.records["digits"] = [record("digits", 10.0, protocol="pocket", suite="vtab")]
    table = build_table("vtab", "pocket", [row])
    line = rows_of(table)["qgoft"]
    assert table.columns[-2:] == ["Avg", "Digits"]
    assert line[-2:] == ["80.0", "10.0"]
    assert len({len(cells) for cells in [table.columns, *table.rows]}) == 1
    missing = build_table("vtab", "pocket", [vtab_row(80.0, VTAB[1:], protocol="pocket")])
    assert rows_of(missing)["qgoft"][-5:] == ["-", "80.0", "80.0", "-", "-"]


def test_squad_table_has_two_metrics():
    made = record("v1", 0.0, suite="squad")
    one = {
        "higher_is_better": True,
        "n": 100,
        "standard_error": 1.0,
        "majority_baseline": None,
        "computed_by": "qgoft.tasks.metrics.compute_score",
    }
    made["metrics"] = {"exact_match": {"value": 87.0, **one}, "f1": {"value": 93.0, **one}}
    made["primary"] = "f1"
    made["provenance"]["data"]["data_fixes"] = {"training answers found elsewhere than stated": 2}
    table = build_table("squad", "goft_icml24", [Row("qgoft", {"v1": [made]})])
    lines = rows_of(table)
    assert lines["qgoft"] == ["10,296", "87.0", "93.0"]
    assert lines["published"] == ["0.33M", "87.10", "93.20"]
    assert lines["difference"] == ["", "-0.1", "-0.2"]
    assert "majority class" not in lines
    assert "data of v1: 2 training answers found elsewhere than stated" in table.notes


@pytest.mark.parametrize("table", ["goft-icml2024/table3", "psoft-iclr2026/table3"])
def test_published_vtab_averages(table):
    """Transcription check. Only PSOFT's row `full` prints the plain mean of its nineteen cells."""
    for row in load_rows(*table.split("/")):
        if row.average is None:
            continue
        found = ITEMS["table3"].averages([row.values[task] for task in VTAB])[-1]
        plain = sum(row.values.values()) / 19
        is_the_exception = (row.paper, row.method) == ("psoft-iclr2026", "full")
        assert (plain if is_the_exception else found) == pytest.approx(row.average, abs=0.11), row.method


@pytest.mark.parametrize(("paper", "table"), [("goft-icml2024", "table1"), ("psoft-iclr2026", "table2")])
def test_published_averages_follow_from_cells(paper, table):
    """Transcription check: every printed average is the mean of its printed cells, up to rounding."""
    for row in load_rows(paper, table):
        numbers = [value for value in row.values.values() if isinstance(value, float | int)]
        if row.average is not None:
            assert sum(numbers) / len(numbers) == pytest.approx(row.average, abs=0.0151), row.method


def test_table_writes_four_formats(tmp_path):
    table = Table("t", "A title", ["row", "a & b", "c_d"], [["x|y", "1.0", "2.0 ±0.1"], ["z", "-", "3%"]], ["a note"], [1])
    assert table.terminal().splitlines()[1].split() == ["row", "a", "&", "b", "c_d"]
    assert len({len(line) for line in table.markdown().splitlines() if line.startswith("| ---")}) == 1
    assert "x\\|y" in table.markdown()
    latex = latex_table(table)
    assert r"a \& b & c\_d \\" in latex
    assert r"2.0 $\pm$0.1" in latex
    assert latex.count(r"\midrule") == 2
    assert table.csv().splitlines()[0] == "row,a & b,c_d"
    assert [path.suffix for path in write_table(table, tmp_path)] == [".md", ".tex", ".csv"]


def test_latex_names_are_mathematics():
    assert escape("qGOFT, λ=0.1") == r"qGOFT, $\lambda{=}0.1$"
    assert escape("rows with λ of their own") == r"rows with $\lambda$ of their own"
    assert escape("GOFT* and LoRA r=8: −1.2") == r"GOFT$^*$ and LoRA $r{=}8$: $-$1.2"


def test_table_names_are_unique():
    names = [build_table(suite, protocol, []).name for suite in suite_names() for protocol in suite_info(suite).tables]
    assert len(set(names)) == len(names)


def test_table2_joins_two_tasks():
    metric = {
        "value": 5.5,
        "higher_is_better": True,
        "n": 80,
        "standard_error": 0.2,
        "majority_baseline": None,
        "computed_by": "qgoft.tasks.metrics.compute_score",
    }
    vicuna = record("vicuna", 0.0, method="goft", model="llama-2-7b", suite="instruct")
    vicuna["primary"], vicuna["metrics"] = "score", {"score": metric}
    table = build_table("instruct", "goft_icml24", [Row("goft", {"vicuna": [vicuna]})])
    lines = rows_of(table)
    assert lines["goft"][1:] == [*["-"] * 10, "5.5"]
    assert lines["published"] == [
        "0.007%", "37.47", "52.56", "43.27", "53.22", "46.36", "35.33", "50.18", "40.77", "49.32", "43.64", "5.96"
    ]  # fmt: skip
    assert lines["difference"][1:] == [*["-"] * 10, "-0.5"]


@pytest.mark.parametrize("table", ["table5", "table15"])
def test_published_commonsense_averages(table):
    rows = [row for row in load_rows("psoft-iclr2026", table) if "oom" not in row.values.values()]
    assert len(rows) >= 6
    for row in rows:
        assert sum(row.values.values()) / 8 == pytest.approx(row.average, abs=0.0101)


def test_latex_tables_compile(tmp_path):
    """The document of all tables, one wide, one long, with characters that LaTeX interprets."""
    evil = r"a_b & 50% #1 {x} \end{document} $ ~ ^ é"
    wide = Table("wide", evil, ["", *[f"column {i}" for i in range(40)]], [["row", *["12.3 ±4.5"] * 40]])
    long = Table("long", "a long one", ["name", "value"], [[evil, str(i)] for i in range(120)], [evil])
    for table in (wide, long):
        write_table(table, tmp_path)
    (tmp_path / "all.tex").write_text(document([wide, long]))
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed; results/example/tables/all.pdf was made with it")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
