"""The fault injection script: a few of its faults. docs/LOG.md has the results of a thousand."""

import subprocess
import sys

import pytest

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.run_id import identify
from tests.fault_injection import inject
from tests.fault_injection.runs import clear


def inject_faults(repository, directory, number, more=""):
    """Run in a new process: the script forks, which torch does not support after its threads have started."""
    program = f"""
import sys
sys.path.insert(0, {str(repository)!r})
from tests.fault_injection import inject, runs
from qgoft.train import training_state as state
runs.TASKS, runs.METHODS = ("rte",), ("adalora",)
{more}
sys.exit(inject.main(["faults", "--number", {number!r}, "--seed", "3", "--directory", {str(directory)!r}]))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


def test_faults_lose_nothing(repository, tmp_path):
    done = inject_faults(repository, tmp_path / "t", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every result equals the undisturbed one, and every fault was reported" in done.stdout


def test_injection_detects_a_wrong_result(repository, tmp_path):
    """Resuming without the random states is detected."""
    forget = "state.write_random = lambda random_state: None; inject.FAULTS = inject.FAULTS[:1]"
    done = inject_faults(repository, tmp_path / "t", "2", forget)
    assert done.returncode == 1, done.stderr
    assert "weights, history differ" in done.stdout


def test_status_names_the_resume_step(tmp_path):
    run_id = identify(compose_settings([f"results.root={tmp_path}"]))
    assert run_id.state() == ("planned", "")
    (run_id.directory / "checkpoint").mkdir(parents=True)
    for step in (90, 120):
        (run_id.directory / "checkpoint" / f"step-{step:08}.safetensors").touch()
    assert run_id.state() == ("planned", "resumes after step 120")


@pytest.mark.parametrize("words", [["faults"], ["kicks", "--number", "1"]])
def test_injection_arguments_invalid(words):
    with pytest.raises(QgoftError, match=r"invalid choice: 'kicks'|arguments are required: --number"):
        inject.main(words)


def test_injection_empties_only_its_directory(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(QgoftError, match="is not empty and was not created by this script"):
        inject.main(["faults", "--number", "1", "--directory", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "years"
    clear(tmp_path / "new")
    (tmp_path / "new" / "old").touch()
    clear(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".fault-injection"]
