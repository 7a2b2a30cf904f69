"""The script that looks for losses: a few of its faults here; the hundreds are in docs/LOG.md."""

import subprocess
import sys

import pytest

from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.run_id import identify
from tests.fault_injection import torture


def torment(repository, folder, number, more=""):
    """In a process of its own: it forks, which torch does not bear once its threads have worked."""
    program = f"""
import sys
sys.path.insert(0, {str(repository)!r})
from tests.fault_injection import torture
from qgoft.train import training_state as state
torture.TASKS, torture.METHODS = ("rte",), ("adalora",)
{more}
sys.exit(torture.main(["faults", "--number", {number!r}, "--seed", "3", "--folder", {str(folder)!r}]))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


def test_faults_leave_nothing_lost_or_wrong(repository, tmp_path):
    done = torment(repository, tmp_path / "t", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every result was as undisturbed, and every fault was named" in done.stdout


def test_it_would_see_a_wrong_result(repository, tmp_path):
    """Resuming that forgets the random states is found."""
    forget = "state.write_random = lambda random_state: None; torture.FAULTS = torture.FAULTS[:1]"
    done = torment(repository, tmp_path / "t", "2", forget)
    assert done.returncode == 1, done.stderr
    assert "weights, history differ" in done.stdout


def test_status_says_from_where_a_run_goes_on(tmp_path):
    run_id = identify(compose_settings([f"results.root={tmp_path}"]))
    assert run_id.state() == ("planned", "")
    (run_id.folder / "checkpoint").mkdir(parents=True)
    for step in (90, 120):
        (run_id.folder / "checkpoint" / f"step-{step:08}.safetensors").touch()
    assert run_id.state() == ("planned", "goes on after step 120")


@pytest.mark.parametrize("words", [["faults"], ["blows", "--number", "1"]])
def test_mistakes_are_told(words):
    with pytest.raises(QgoftError, match=r"invalid choice: 'blows'|arguments are required: --number"):
        torture.main(words)


def test_only_a_directory_of_its_own_is_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(QgoftError, match="was not made by this script and is not empty"):
        torture.main(["faults", "--number", "1", "--folder", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "years"
    torture.clear(tmp_path / "new")
    (tmp_path / "new" / "old").touch()
    torture.clear(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".torture"]
