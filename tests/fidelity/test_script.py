"""scripts/fidelity.py on a generated checkout: it reports differences and missing names."""

import pytest

from qgoft.commands import fidelity
from qgoft.errors import QgoftError

pytestmark = pytest.mark.fidelity


def test_fidelity_reports_differences(tmp_path, capsys):
    code = "import nothing_that_exists\n\ndef extract_answer(args, text):\n    return ''\n"
    (tmp_path / "commonsense_evaluate.py").write_text(code)
    assert fidelity.main(["--llm-adapters", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "NO" in out
    assert "of 1,000 differ" in out


def test_fidelity_without_checkouts():
    with pytest.raises(QgoftError, match="no checkout is named; set one or more of PEFT_GIVENS="):
        fidelity.main([])


def test_fidelity_with_another_commit(tmp_path):
    (tmp_path / "commonsense_evaluate.py").write_text("def other():\n    pass\n")
    with pytest.raises(QgoftError, match=r"has no extract_answer; name a checkout at the commit of docs/fidelity.md"):
        fidelity.main(["--llm-adapters", str(tmp_path)])
    with pytest.raises(QgoftError, match="cannot be read"):
        fidelity.main(["--svft", str(tmp_path)])
