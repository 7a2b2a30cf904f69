"""`make report`: from a directory of records to the page, its tables and its figures, without torch."""

import errno
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qgoft import cli as _ending
from qgoft.report.item_tables import write_tables
from qgoft.report.library import RecordLibrary
from qgoft.report.table import Table
from qgoft.sweep.record_index import RecordIndex
from tests.committed import select, write_run

GLUE = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")


def report(repository, root, out):
    """Run it in a process in which torch cannot be imported."""
    program = (
        f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(repository)!r})\n"
        f"from qgoft.commands import report; sys.exit(report.main(['--root', {str(root)!r}, '--out', {str(out)!r}, '--jobs', '1']))"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Copy some of the committed records: rows of table 1, both ablations, the judged answers."""
    root = tmp_path_factory.mktemp("report")
    chosen = [
        r
        for m, v in (("lora", "r8"), ("full", "full"), ("goft", "goft"), ("qgoft", "qgoft"))
        for r in select(*GLUE, method=m, variant=v, seed=0)
    ]
    chosen += [r for m in ("goft", "goft_star", "qgoft") for seed in (1, 2) for r in select("rte", "qnli", method=m, variant=m, seed=seed)]
    chosen = [r for r in chosen if r["model"] == "pocket-deberta"] + select("vicuna", model="pocket-llama", seed=0)
    for record in {r["key"]: r for r in chosen}.values():
        write_run(record, root / "runs" / record["key"])
    return root


@pytest.mark.slow
def test_report_is_deterministic(repository, root, tmp_path):
    first, again = report(repository, root, tmp_path / "one"), report(repository, root, tmp_path / "two")
    assert first.returncode == again.returncode == 0, first.stderr
    assert "items without a record" in first.stdout
    figures = {path.name for path in (tmp_path / "one" / "figures").iterdir()}
    for stem in ("flexibility", "lambda", "table1-pareto", "table1-curves"):
        assert {f"{stem}.svg", f"{stem}.png", f"{stem}.pdf"} <= figures
    assert any(name.startswith("figure3") for name in figures)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    same, differing, missing = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)
    assert not [path for path in differing if Path(path).suffix != ".pdf"]
    assert not missing
    assert len(same) > 60
    page = (tmp_path / "one" / "report.html").read_text()
    for heading in (
        "GOFT table 1</h2>",
        "GOFT figure 4 (b), lambda</h2>",
        "GOFT figure 3</h2>",
        "audit of the published values",
    ):
        assert heading in page
    assert "LoRA r=8" in (tmp_path / "one" / "tables" / "table1.md").read_text()
    assert "lora@r8" in (tmp_path / "one" / "tables" / "table1.csv").read_text()


@pytest.mark.slow
def test_report_names_a_broken_record(repository, root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    broken = sorted((tmp_path / "root" / "runs").iterdir())[0] / "record.json"
    broken.write_text(broken.read_text()[:300])
    done = report(repository, tmp_path / "root", tmp_path / "out")
    assert done.returncode == 0
    assert str(broken) in done.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_report_without_records(repository, tmp_path):
    done = report(repository, tmp_path, tmp_path / "out")
    assert ": no record; run something first" in done.stderr
    assert done.returncode


def test_report_read_only_directory(repository, tmp_path, monkeypatch, capsys):
    """Tables are still printed, and one line states that they cannot be written."""

    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    told = write_tables([Table("t", "title", ["a"])], RecordLibrary(RecordIndex([]), {}, root=tmp_path))
    assert told == f"not written: {tmp_path}/tables: Read-only file system"
    with pytest.raises(SystemExit) as ending:
        _ending.run_cli(lambda: len(str((tmp_path / "out").mkdir())))
    assert ending.value.code == 2
    assert capsys.readouterr().err == (
        f"qgoft: cannot open or write {tmp_path}/out: Read-only file system; free space or choose another directory\n"
    )
