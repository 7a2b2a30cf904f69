"""The script that looks for losses: a few of its faults here; the thousand are in docs/LOG.md."""

import pytest
import torture
from _settings import compose_settings

from qgoft.ledger import identify


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    monkeypatch.setattr(torture, "TASKS", ("rte",))
    monkeypatch.setattr(torture, "METHODS", ("adalora",))


def test_faults_leave_nothing_lost_or_wrong(tmp_path, capfd):
    assert torture.main(["faults", "--number", "5", "--seed", "3", "--folder", str(tmp_path / "t")]) == 0, capfd.readouterr().out
    assert "every result was as undisturbed, and every fault was named" in capfd.readouterr().out


def test_it_would_see_a_wrong_result(tmp_path, monkeypatch, capfd):
    """Resuming that forgets the random states is found."""
    from qgoft.train import state

    monkeypatch.setattr(state, "write_random", lambda random_state: None)
    monkeypatch.setattr(torture, "FAULTS", torture.FAULTS[:1])
    assert torture.main(["faults", "--number", "2", "--seed", "3", "--folder", str(tmp_path / "t")]) == 1
    assert "weights, history differ" in capfd.readouterr().out


def test_status_says_from_where_a_run_goes_on(tmp_path):
    identity = identify(compose_settings([f"results.root={tmp_path}"]))
    assert identity.state() == ("planned", "")
    (identity.folder / "checkpoint").mkdir(parents=True)
    for step in (90, 120):
        (identity.folder / "checkpoint" / f"step-{step:08}.safetensors").touch()
    assert identity.state() == ("planned", "goes on after step 120")


@pytest.mark.parametrize("words", [["faults"], ["blows", "--number", "1"]])
def test_mistakes_are_told(words, capsys):
    with pytest.raises(SystemExit):
        torture.main(words)
    assert "usage:" in capsys.readouterr().err
