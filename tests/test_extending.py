"""The guides of docs/extending.md, executed as written in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

COPIED = ("qgoft", "configs", "scripts", "results/published", "results/measured/bench")
FILE = re.compile(r"`((?:qgoft|configs)/[^`\n]+\.(?:py|yaml))`(?:(?!\n\n).)*?:\n\n( *)```(?:python|yaml)\n(.*?)^\2```", re.M | re.S)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def guides(repository):
    text = (repository / "docs" / "extending.md").read_text()
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


@pytest.fixture
def run_guide(repository, tmp_path):
    """Execute one guide. Return the output of each command."""

    def carry_out(title):
        guide = guides(repository)[title]
        for directory in COPIED:
            shutil.copytree(repository / directory, tmp_path / directory, ignore=shutil.ignore_patterns("__pycache__"))
        files = FILE.findall(guide)
        for path, _, content in files:
            target = tmp_path / path
            assert not target.exists(), f"{path}: a guide adds files only"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(content))
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        outputs = []
        for line in SHELL.findall(guide)[0].splitlines():
            command = line.replace("python ", f"{sys.executable} ", 1)
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            outputs.append(done.stdout)
        return [path for path, _, _ in files], outputs, tmp_path / "results"

    return carry_out


@pytest.mark.slow
def test_guide_to_add_a_method(run_guide):
    files, (table, status, counts, report), results = run_guide("Add a method")
    assert len(files) == 3
    assert re.search(r"^VeRA r=64 .* \d+\.\d", table, re.M)
    assert "glue/rte vera@r64 seed 0" in status
    assert "vera@r64" in counts
    assert "1 records" in report
    assert "vera" in (results / "report.html").read_text()


@pytest.mark.slow
def test_guide_to_add_a_task(run_guide):
    files, (table, status, _), results = run_guide("Add a task with its own suite")
    assert len(files) == 5
    assert "word order: word order, protocol order" in table
    assert re.search(r"^LoRA r=8 +[\d,]+ +\d+\.\d", table, re.M)
    assert "1 run: 1 done" in status
    assert "order/ends" in (results / "report.html").read_text()


@pytest.mark.slow
def test_guide_to_add_a_protocol(run_guide):
    files, (table, status, _), results = run_guide("Add a protocol")
    assert len(files) == 2
    assert "Table 1: GLUE, protocol short" in table
    assert re.search(r"^GOFT +2,574 +\d+\.\d ±", table, re.M)
    assert "2 runs: 2 done" in status
    assert "(short)" in (results / "report.html").read_text()
