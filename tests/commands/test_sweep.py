"""The command that plans and runs items."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from qgoft import records
from qgoft.commands import sweep
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.report.published import load_paper
from qgoft.sweep import identify, planned_run
from qgoft.sweep.actions import print_problems
from qgoft.train.run import run
from tests.forked import run_script

SHORT = ["train.max_steps=4", "train.num_evals=1"]


def start(repository, tmp_path, *words):
    line = [sys.executable, str(repository / "scripts" / "sweep.py"), *words, f"results.root={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository, env=environment)


def command(repository, tmp_path, *words):
    done = run_script("sweep", *words, f"results.root={tmp_path}", cwd=repository)
    return done.returncode, done.stdout, done.stderr


def test_figure3_prints_wins(capsys, tmp_path):
    """The wins of the committed ratings; without ratings, a line that there are none."""
    assert sweep.main(["figure3", "--records", "measured", "--jobs", "1", f"results.root={tmp_path}"]) == 0
    assert "won" in capsys.readouterr().out
    assert sweep.main(["figure3", "--action", "table", "--jobs", "1", f"results.root={tmp_path}"]) == 0
    assert "figure3: no finished run yet" in capsys.readouterr().out


@pytest.mark.slow
def test_two_sweeps_share_the_work(repository, tmp_path):
    words = ("psoft-table7", "--tasks", "rte", "--seeds", "0", "--jobs", "1", *SHORT)
    sweeps = [start(repository, tmp_path, *words) for _ in range(2)]
    outputs = [sweep.communicate(timeout=300) for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert len(records.read_records(tmp_path / "runs")) == 3
    lines = [line for _, err in outputs for line in err.splitlines() if "  seed 0  accuracy" in line]
    assert len(lines) == 3, "every run was made once"
    assert all("PSOFT r=64 (orthogonal B) (altered)" in out for out, _ in outputs)
    assert not list(tmp_path.rglob("lease.*"))
    table = (tmp_path / "tables" / "psoft-table7.md").read_text()
    assert "published psoft@r64-borth (DeBERTaV3-base, other data; context only): 52.71  67.97" in table
    code, out, _ = command(repository, tmp_path, *words, "--action", "status")
    assert code == 0
    assert "3 runs: 3 done" in out


@pytest.mark.slow
def test_killed_worker_is_restarted(repository, tmp_path):
    process = start(
        repository,
        tmp_path,
        "flexibility",
        "--method",
        "goft,qgoft",
        "--tasks",
        "rte",
        "--seeds",
        "0",
        "--jobs",
        "2",
        "train.max_steps=20",
    )
    for _ in range(600):
        leases = [json.loads(path.read_text()) for path in tmp_path.rglob("lease.0.json")]
        if leases:
            break
        time.sleep(0.1)
    time.sleep(1)
    os.kill(leases[0]["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "was killed; retrying the run" in err
    assert {record["method"] for record in records.read_records(tmp_path / "runs")} == {"goft", "qgoft"}


def test_submitit_runs_jobs(repository, tmp_path):
    """The local executor runs the same jobs as SLURM's. A refused one gives its reason."""
    words = ("flexibility", "--method", "goft", "--tasks", "rte", "--seeds", "0,1", "--jobs", "2", "--launcher", "submitit_local")
    code, out, err = command(repository, tmp_path, *words, "hydra.launcher.timeout_min=5", *SHORT)
    assert code == 0, err
    assert "2 jobs, the first is " in out
    assert "2 of 2 runs ended" in err
    assert {record["seed"] for record in records.read_records(tmp_path / "runs")} == {0, 1}
    assert len(list((tmp_path / "jobs").glob("*/*_log.out"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "slurm"], "unknown launcher 'slurm'; allowed are basic, joblib, submitit_local, submitit_slurm; change LAUNCHER"),
        (["--detach"], "DETACH=1: only for cluster jobs; set LAUNCHER=submitit_slurm"),
        (["--launcher", "submitit_local", "hydra.launcher.partitionn=x"], "unknown option of launcher submitit_local"),
        (["--launcher", "submitit_slurm"], "sbatch is not installed"),
    ],
)
def test_launcher_options_invalid(repository, tmp_path, words, message):
    if message == "sbatch is not installed" and shutil.which("sbatch"):
        pytest.skip("this machine has SLURM")
    code, _, err = command(repository, tmp_path, "flexibility", "--method", "goft", "--tasks", "rte", "--seeds", "0", *words, *SHORT)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_sweep_lists_all_failures(repository, tmp_path):
    code, out, err = command(
        repository, tmp_path, "flexibility", "--method", "lora,qgoft", "--tasks", "rte", "--seeds", "0", "--jobs", "1", "optim.lr=1.0e+18",
        "optim.max_grad_norm=null", "selection=last", *SHORT,
    )  # fmt: skip
    assert code == 1
    named = [line for line in err.splitlines() if "is not done: diverged" in line]
    assert len(named) == 2
    assert "diverged" in out, "the table shows what happened"


def test_failfast_leaves_pending_runs(repository, tmp_path):
    code, _, err = command(
        repository, tmp_path, "flexibility", "--method", "lora,qgoft", "--tasks", "rte", "--seeds", "0", "--jobs", "1", "--failfast",
        "optim.lr=1.0e+18", "optim.max_grad_norm=null", "selection=last", *SHORT,
    )  # fmt: skip
    assert code == 1
    assert len(records.read_records(tmp_path / "runs")) == 1
    assert "not started: FAILFAST ended the sweep" in err


def test_table_excludes_broken_records(repository, tmp_path):
    """Corrupt, of an older schema, or with NaN: named and left out; the other records are shown."""
    run(compose_settings(["task=glue/rte", "method=goft", f"results.root={tmp_path}", *SHORT]))
    (good,) = (tmp_path / "runs").glob("*/record.json")
    record = json.loads(good.read_text())
    for name, text in (
        ("corrupt", good.read_text()[:300]),
        ("older", json.dumps({**record, "schema": 0})),
        ("nan", json.dumps({**record, "key": "0" * 64, "metrics": {"accuracy": {**record["metrics"]["accuracy"], "value": float("nan")}}})),
    ):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "record.json").write_text(text)
    twice = tmp_path / "runs" / "twice"
    twice.mkdir()
    (twice / "record.json").write_text(good.read_text())
    code, out, _ = command(repository, tmp_path, "flexibility", "--method", "goft", "--tasks", "rte", "--seeds", "0", *SHORT)
    assert code == 0
    assert out.count("warning, skipped: ") == 3
    for name, reason in (("corrupt", "Unterminated|Expecting"), ("older", "schema is 0"), ("nan", "is nan")):
        assert re.search(rf"{name}/record.json: .*({reason})", out), out
    assert re.search(r"GOFT \(altered\) .* \d\d\.\d", out)


def test_item_without_runs_prints_published(repository, tmp_path):
    code, out, _ = command(repository, tmp_path, "table10")
    assert code == 0
    assert "measured on cpu" in out
    assert str(load_paper("goft-icml2024")["table10"]["rows"]["qgoft"][0]) in (tmp_path / "tables" / "table10-published.md").read_text()


def test_status_and_fetch_continue_after_errors(tmp_path, capsys):
    words = [("task=glue/rte",), ("protocol=psoft_iclr26", "task=math/math", "method=lora", f"data.root={tmp_path}", "data.source=hub")]
    cells = [planned_run.PlannedRun(some, compose_settings([*some, f"results.root={tmp_path}"])) for some in words]
    problems = {}
    keyed, run_ids = identify.identify_all([*cells, cells[1]], 1, problems)
    assert [cell.settings.task.full_name for cell in keyed] == ["glue/rte"]
    assert len(run_ids) == 1
    (name,) = problems
    assert name == f"math/math with {cells[1].settings.model.name}"
    assert print_problems({**problems, "math/gsm8k": problems[name]}) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"qgoft: left out {name}, math/gsm8k: ")
    with pytest.raises(QgoftError):
        identify.identify_all(cells, 1)


@pytest.mark.parametrize("words", [["--action", "status"], ["--launcher", "submitit_slurm"]])
def test_cluster_gpus_are_not_checked_locally(words):
    assert sweep.parse(["glue", "--nproc", "64", "--accelerate", "fsdp2", *words]).nproc == 64


def test_added_launcher_options_reach_the_launcher():
    words = ["+hydra.launcher.additional_parameters.reservation=x", "hydra.launcher.partition=p", "optim.max_grad_norm=2"]
    assert sweep.item_filter(sweep.parse(["glue", "--launcher", "submitit_slurm", *words])).overrides == ("optim.max_grad_norm=2",)
    assert sweep.launcher_overrides(words) == tuple(words[:2])
