"""The audit finds the known inconsistencies, and reports nothing else."""

import pytest

from qgoft.audit.averages import check_averages, mean_of_groups
from qgoft.audit.counts import PrintedCount, Reading, check_counts
from qgoft.audit.granularity import LEVEL, check_granularity, find_grain, shares
from qgoft.audit.operator import check_operator
from qgoft.audit.sizes import check_sizes, could_be
from qgoft.audit.wins import check_wins
from qgoft.commands import audit as script
from qgoft.errors import QgoftError
from qgoft.report.published import load_figures


@pytest.fixture(scope="module")
def audited():
    return script.run(None)


@pytest.fixture(scope="module")
def findings(audited):
    return audited[0]


def test_committed_findings_are_current(audited, repository):
    """Reports read them. After a change: python scripts/audit.py --write results/published/audit.json"""
    assert (repository / "results" / "published" / "audit.json").read_text() == script.as_json(*audited)


def found(findings, where, *, is_explained=False):
    (finding,) = [f for f in findings if f.where == where and f.is_explained == is_explained]
    return finding


@pytest.mark.parametrize(
    ("where", "printed", "follows"),
    [
        ("psoft-iclr2026 table3, full, average", "67.8", "71.1, the mean of the group means; printed is the plain mean"),
        ("goft-icml2024 table2, lora_r16, MMLU average with 5 examples", "45.68", "45.45"),
        ("psoft-iclr2026 table5, oft_v2_b32", "14.3M", "15,237,120"),
        ("goft-icml2024 table1, fact_tk", "0.05M", "86,528"),
        ("goft-icml2024 table3, goft", "0.018M", "printed is 18,408 (goft, query and value only)"),
        ("goft-icml2024 table3, qgoft", "0.073M", "printed is 73,632 (qgoft, query and value only)"),
        ("goft-icml2024 table3, lora_r8", "0.295M", "printed is 294,912 (lora@r8, query and value only)"),
        ("goft-icml2024 table1, oft_b8", "0.66M", "printed is 663,552 (oft_paper@b8, all linear layers)"),
        ("goft-icml2024 table1, oft_b4", "0.33M", "printed is 331,776 (oft_paper@b4, all linear layers)"),
        ("goft-icml2024 table6, rte dev", "276", "277 rows"),
        ("goft-icml2024 table6, qnli dev", "5.7k", "5,463 rows"),
        ("goft-icml2024 table6, stsb train", "7k", "5,749 rows"),
        ("goft-icml2024 table3, oft_b8", "17 of 19", "256 items"),
        ("goft-icml2024 table3, goft", "16 of 19", "256 items"),
        ("goft-icml2024 table3, qgoft", "15 of 19", "256 items"),
        ("second release, forward", "orthogonal", "max |R^T R - I| = "),
        ("second release, merge", "orthogonal", "max |R^T R - I| = "),
        ("second release, forward and merge", "the same matrix", "they differ by"),
    ],
)
def test_audit_finds_known_differences(findings, where, printed, follows):
    finding = next(f for f in findings if f.where == where and f.printed.startswith(printed))
    assert follows in finding.follows
    assert not finding.is_explained


def test_rounding_is_not_a_difference(findings):
    assert "cut off" in found(findings, "goft-icml2024 table3, lora_r8, average", is_explained=True).follows
    assert {f.check for f in findings if f.is_explained} == {"averages", "counts"}


def test_baselines_have_no_findings(findings):
    accused = {f.where for f in findings if f.check in ("granularity", "wins") and not f.is_explained}
    assert accused == {f"goft-icml2024 table3, {name}" for name in ("oft_b8", "goft", "qgoft")}
    averages = {f.where.split(", ")[1] for f in findings if f.check == "averages" and not f.is_explained}
    assert averages == {"full", "lora_r16", "base"}, "PSOFT's full, and two of twelve averages of MMLU"


def test_mmlu_averages_agree_except_two():
    off = [f for f in check_averages()[0] if "MMLU" in f.where and not f.is_explained]
    assert len(off) == 2


def test_changed_value_is_found(monkeypatch):
    """Each check detects a changed value."""
    figures = load_figures("goft-icml2024", "table1")
    row = figures["rows"]["lora"]
    monkeypatch.setitem(row, "avg", row["avg"] + 0.3)
    assert any(f.where == "goft-icml2024 table1, lora, average" and not f.is_explained for f in check_averages()[0])
    monkeypatch.setitem(load_figures("goft-icml2024", "figure3")["rows"]["lora"], "values", [36, 29, 16])
    assert [f.follows for f in check_wins()[0]] == ["they sum to 81, not 80"]
    sizes = script.official_sizes()
    known = {f.where for f in check_sizes(sizes)[0]}
    assert {f.where for f in check_sizes({**sizes, "sst2": (67349, 873)})[0]} - known == {"goft-icml2024 table6, sst2 dev"}


def test_partial_audit_keeps_the_full_record(tmp_path, capsys):
    assert script.main(["--only", "wins", "--root", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {"audit-wins", "audit-explained-wins"}
    assert "audit-wins" in capsys.readouterr().out
    with pytest.raises(QgoftError, match="--write stores the whole audit"):
        script.main(["--only", "wins", "--root", str(tmp_path), "--write", str(tmp_path / "audit.json")])


def test_group_means():
    values = load_figures("psoft-iclr2026", "table3")["rows"]["full"]["values"]
    assert round(mean_of_groups(values), 1) == 71.1


def test_shares_round_half_up():
    assert 4 in shares(256)  # 1/256 = 0.390625
    assert 5 not in shares(256)
    assert 125 in shares(8)
    assert {63, 188} <= shares(16)  # 6.25 and 18.75


def test_granularity_of_generated_rows():
    true = [round(100 * k / 64 + 1e-9, 1) for k in (3, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 57, 59, 61, 62, 63)]
    assert find_grain(true).is_flagged
    innocent = [68.9, 87.7, 64.3, 97.2, 86.9, 87.4, 38.8, 79.7, 95.7, 84.2, 73.9, 56.3, 58.6, 41.7, 65.5, 57.5, 46.7, 25.7, 29.1]
    grain = find_grain(innocent)
    assert not grain.is_flagged
    assert grain.probability * 481 >= LEVEL
    assert check_granularity()[1] == 17


@pytest.mark.parametrize(
    ("shown", "rows", "may"),
    [
        ("872", 872, True),
        ("276", 277, False),
        ("8.5k", 8551, True),
        ("8.6k", 8551, True),
        ("8.7k", 8551, False),
        ("1k", 1043, True),
        ("7k", 5749, False),
    ],
)
def test_sizes_may_be_truncated_or_rounded(shown, rows, may):
    assert could_be(shown, rows) == may


def test_size_unknown_format():
    with pytest.raises(ValueError, match="is not a size"):
        could_be("many", 3)


def test_counts_that_agree_are_not_listed():
    count = PrintedCount("p", "t", "r", "0.33M", 10**8, Reading("as stated", 331_776))
    assert check_counts([count]) == []


def test_published_operator_is_orthogonal():
    found_, looked_at = check_operator()
    assert looked_at == 3
    assert not [f for f in found_ if "as published" in f.where]
