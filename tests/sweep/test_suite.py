"""The command behind `make glue`: planning, pending runs, the table, and errors of one line."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset

from qgoft import records
from qgoft.commands import sweep
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.lease import _is_zombie
from qgoft.pocket.data import pocket_files
from qgoft.report.rows import collect_rows
from qgoft.sweep import identify, planned_run, record_index
from qgoft.train.run import run
from tests.forked import run_script
from tests.sweep.planning import suite_runs

SHORT = ["train.max_steps=4", "train.num_evals=1"]


def command(repository, tmp_path, *words):
    return run_script("sweep", *words, f"results.root={tmp_path}", cwd=repository)


def test_refused_runs_leave_the_tables(repository, tmp_path):
    """All runs of the command are refused, so the tables are still those of an earlier one."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table1.md").write_text("of an earlier command")
    done = command(repository, tmp_path, "glue", "--method", "vera", "--tasks", "rte", "++method.options.d_initail=0.2", *SHORT)
    assert done.returncode == 1
    assert "is not done: refused: method.options.d_initail: method vera has no such option (did you mean d_initial?)" in done.stderr
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["table1.md"]
    assert (tmp_path / "tables" / "table1.md").read_text() == "of an earlier command"


def test_sweep_runs_pending_and_prints_table(repository, tmp_path):
    run(compose_settings(["task=glue/rte", f"results.root={tmp_path}", *SHORT]))
    done = command(repository, tmp_path, "glue", "--tasks", "rte,cola", "--jobs", "2", *SHORT)
    assert "GLUE, protocol pocket: 2 runs planned, 1 done" in done.stdout
    found = records.read_records(tmp_path / "runs")
    assert {record["task"] for record in found} == {"rte", "cola"}
    undefined = [record for record in found if record["status"] != "done"]
    assert done.returncode == (1 if undefined else 0), done.stderr
    assert "#Param" in done.stdout
    assert "10,296" in done.stdout
    assert "context only" in done.stdout
    for suffix in ("md", "tex", "csv"):
        assert (tmp_path / "tables" / f"table1.{suffix}").read_text()
    again = command(repository, tmp_path, "glue", "--tasks", "rte", *SHORT)
    assert "1 run planned, 1 done, nothing left to do" in again.stdout


@pytest.mark.slow
def test_multiprocess_runs_are_skipped(repository, tmp_path):
    """The number of processes is part of the key, also while planning."""
    words = ("math", "--tasks", "gsm8k", "--nproc", "2", *SHORT, "task.options.new_tokens=2")
    done = command(repository, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (record,) = records.read_records(tmp_path / "runs")
    assert record["provenance"]["hardware"]["processes"] == 2
    assert "1 run planned, 1 done, nothing left to do" in command(repository, tmp_path, *words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", ","], "METHOD is empty; expected a list such as qgoft,lora@r2"),
        (["--method", "qgooft"], "unknown method 'qgooft' (did you mean qgoft?); allowed are"),
        (["--tasks", "wnli"], "unknown task 'wnli' of suite glue; allowed are cola"),
        (["--protocol", "paper"], "unknown protocol 'paper'"),
        (["--seeds", "one"], "seed 'one': allowed are whole numbers"),
        (["--model", "bert"], "unknown model 'bert'"),
        (["--protocol", "psoft_iclr26", "--tasks", "mnli"], "did not run it"),
        (["--protocol", "small", "--data", "nowhere", "--tasks", "rte"], "data.root=nowhere does not exist; change DATA"),
        (["train.batch_sise=3"], "unknown setting train.batch_sise (did you mean train.batch_size?)"),
        (
            ["--nproc", "2", "--accelerate", "fsdp"],
            "unknown accelerate 'fsdp' (did you mean fsdp2?); allowed are deepspeed_zero2, fsdp2; change ACCELERATE",
        ),
        (["--accelerate", "fsdp2"], "set NPROC to the number of GPUs"),
        (["--nproc", "99", "--accelerate", "fsdp2"], "needs 99 GPUs"),
        (["--nproc", "99", "--accelerate", "fsdp2", "--launcher", "submitit_local"], "needs 99 GPUs"),
    ],
)
def test_sweep_errors_are_one_line(repository, tmp_path, words, message):
    done = command(repository, tmp_path, "glue", *words)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("qgoft: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=5"], "ARGS=seed=5: the plan sets seed; use SEEDS=..."),
        (["+method=lora"], "use METHOD=..."),
        (["protocol=small"], "use PROTOCOL=..."),
        (["hydra.launcher.partition=gpu"], "set LAUNCHER=submitit_slurm"),
        (["--jobs", "-1"], "JOBS=-1: it must be at least 1"),
        (["--nproc", "0"], "NPROC=0: it must be at least 1"),
    ],
)
def test_sweep_refuses_ineffective_overrides(words, message):
    with pytest.raises(QgoftError, match=re.escape(message)):
        sweep.parse(["glue", *words])


def test_plan_is_the_product():
    cells = suite_runs(["glue", "--method", "qgoft,lora@r2", "--tasks", "rte,glue/cola", "--seeds", "0,3"])
    assert len(cells) == 8
    assert {(c.settings.method.name, c.settings.method.variant) for c in cells} == {("qgoft", "qgoft"), ("lora", "r2")}
    assert {c.settings.seed for c in cells} == {0, 3}
    assert {c.settings.task.name for c in cells} == {"rte", "cola"}


def test_plan_uses_the_protocols_seeds():
    cells = suite_runs(["glue", "--tasks", "rte", "--protocol", "goft_icml24", "--records", "measured"])
    assert [c.settings.seed for c in cells] == [0, 1, 2, 3, 4]


def test_plan_leaves_out_unsupported_tasks():
    cells = suite_runs(["glue", "--method", "psoft", "--protocol", "psoft_iclr26"])
    assert {c.settings.task.name for c in cells} == {"cola", "stsb", "mrpc", "rte", "sst2", "qnli"}


def test_table_uses_records_of_its_settings(tmp_path):
    short = compose_settings(["task=glue/rte", f"results.root={tmp_path}", *SHORT])
    run(short)
    found = records.read_records(tmp_path / "runs")
    (cell,) = suite_runs(["glue", "--tasks", "rte"])
    assert record_index.RecordIndex(found).find(cell) is None, "a truncated run is not the protocol's"
    (same,) = suite_runs(["glue", "--tasks", "rte", *SHORT])
    assert record_index.RecordIndex(found).find(same)["key"] == found[0]["key"]


def test_table_excludes_other_data(tmp_path):
    """Two data directories in turn, and a table of the first: settings do not distinguish their runs."""
    found = []
    for name, first in (("a", 0), ("b", 40)):
        directory = tmp_path / name / "rte"
        directory.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = Dataset.from_parquet(str(pocket_files("glue", "rte") / f"{split}.parquet"))
            rows.select(range(first, first + 32)).to_parquet(directory / f"{split}.parquet")
        words = ["task=glue/rte", f"results.root={tmp_path}", "data.source=hub", f"data.root={directory.parent}", *SHORT]
        found.append(run(compose_settings(words)))
    index = record_index.RecordIndex(records.read_records(tmp_path / "runs"))
    for record, name in zip(found, ("a", "b"), strict=True):
        words = ["glue", "--tasks", "rte", "--data", str(tmp_path / name), "data.source=hub", *SHORT]
        (cell,) = identify.resolve_named_paths(suite_runs(words))
        (row,) = collect_rows([cell], index)
        assert [made["key"] for made in row.all()] == [record["key"]]
        assert row.others == 1
    (unnamed,) = suite_runs(["glue", "--tasks", "rte", "data.source=hub", *SHORT])
    (row,) = collect_rows([unnamed], index)
    assert (len(row.all()), row.others) == (1, 1)


def test_record_with_unknown_settings(tmp_path, capsys):
    settings = compose_settings(["task=glue/rte", f"results.root={tmp_path}", *SHORT])
    run(settings)
    (made,) = records.read_records(tmp_path / "runs")
    (cell,) = suite_runs(["glue", "--tasks", "rte", *SHORT])
    made["settings"]["optim"]["min_lr"] = 1e-5  # of a linear schedule
    assert record_index.RecordIndex([made]).find(cell) is None
    said = capsys.readouterr().err
    assert f"left out: run {made['key'][:16]} (rte, qgoft), whose settings this version does not support: optim.min_lr=" in said


def test_status_and_fetch(repository, tmp_path):
    done = command(repository, tmp_path, "glue", "--tasks", "rte", "--action", "status")
    assert "planned" in done.stdout
    done = command(repository, tmp_path, "glue", "--tasks", "rte", "--action", "fetch")
    assert "data pocket rte" in done.stdout
    assert "model pocket" in done.stdout


def test_failing_job_does_not_stop_the_sweep(repository, tmp_path):
    """Two jobs on one process: the first diverges, the second finishes, and the exit code is 1."""
    words = [
        "-m",
        "task=glue/rte",
        "method=qgoft",
        "optim.lr=1.0e+18,0.01",
        "optim.max_grad_norm=null",
        "selection=last",
        *SHORT,
        f"results.root={tmp_path}",
    ]
    done = run_script("train", *words, cwd=repository)
    assert done.returncode == 1
    assert sorted(record["status"] for record in records.read_records(tmp_path / "runs")) == ["diverged", "done"]


def test_killed_sweep_leaves_no_workers(repository, tmp_path):
    """SIGKILL to the parent: its workers notice, save their runs and end long before a run of thousands of steps would."""
    words = [sys.executable, str(repository / "scripts" / "sweep.py"), "glue", "--tasks", "rte,stsb", "--jobs", "2"]
    settings = [f"results.root={tmp_path}", "train.max_steps=100000", "train.num_evals=1", "results.checkpoint_interval=1"]
    sweep = subprocess.Popen([*words, *settings], stderr=subprocess.DEVNULL, cwd=repository, env={**os.environ, "OMP_NUM_THREADS": "1"})
    began = time.monotonic()
    while len(list(tmp_path.glob("runs/*/attempt-*/checkpoint/step-*.safetensors"))) < 2:
        assert sweep.poll() is None
        assert time.monotonic() - began < 120
        time.sleep(0.05)
    workers = [int(json.loads(path.read_text())["pid"]) for path in tmp_path.glob("runs/*/lease.*.json")]
    assert len(workers) == 2
    sweep.kill()
    sweep.wait()
    began = time.monotonic()
    while any(Path(f"/proc/{pid}/stat").is_file() and not _is_zombie(pid) for pid in workers):
        assert time.monotonic() - began < 40
        time.sleep(0.1)
    assert {record["status"] for record in records.read_records(tmp_path / "runs")} == {"interrupted"}


def test_interrupted_sweep_resumes(repository, tmp_path):
    """SIGTERM to the sweep as soon as one worker has a checkpoint, while the other may still be starting: running runs are saved, no
    process remains, and the same command resumes. The runs have so many steps that none is evaluating by then."""
    words = [sys.executable, str(repository / "scripts" / "sweep.py"), "glue", "--tasks", "rte,stsb", "--jobs", "2"]
    settings = [f"results.root={tmp_path}", "train.max_steps=30", "train.num_evals=1", "results.checkpoint_interval=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(
        [*words, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository, env=environment
    )
    began = time.monotonic()
    while not list(tmp_path.glob("runs/*/attempt-*/checkpoint/step-*.safetensors")):
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() - began < 120
        time.sleep(0.01)
    sweep.terminate()
    _, told = sweep.communicate(timeout=60)
    assert sweep.returncode == 143, told
    assert "stopping; active runs are saved first" in told
    assert not list(tmp_path.glob("runs/*/lease.*"))
    left = {r["key"]: r for r in records.read_records(tmp_path / "runs")}
    stopped = [r for r in left.values() if r["status"] == "interrupted" and "resumes from there" in r["reason"]]
    assert stopped
    again = subprocess.run([*words, *settings], capture_output=True, text=True, cwd=repository, env=environment, timeout=200)
    found = records.read_records(tmp_path / "runs")
    assert len(found) == 2, again.stderr
    assert all("resumed" in r["provenance"] for r in found if r["key"] in {s["key"] for s in stopped})
    assert not list(tmp_path.glob("runs/*/checkpoint"))


def test_suite_unsupported_by_protocol(repository, tmp_path):
    done = command(repository, tmp_path, "squad", "--protocol", "psoft_iclr26")
    assert done.returncode == 2
    assert done.stderr == "qgoft: protocol psoft_iclr26 has no task of suite squad: the paper did not run it; change PROTOCOL\n"


def test_squad_sweep_prints_table(repository, tmp_path):
    done = command(repository, tmp_path, "squad", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "SQuAD v1.1, protocol pocket: 1 run planned, 0 done" in done.stdout
    header = next(line for line in done.stdout.splitlines() if "#Param" in line)
    assert header.split()[-2:] == ["EM", "F1"]
    assert re.search(r"published qGOFT +0\.33M +87\.10 +93\.20", done.stdout)
    assert (tmp_path / "tables" / "table4.tex").is_file()


def test_parallel_planning_is_equal(tmp_path, monkeypatch):
    """Processes compose many settings and generate several tasks in parallel."""
    from qgoft.pocket.data import is_generated, pocket_files, pocket_fingerprint

    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "helpers"))
    cells = suite_runs(["glue", "--method", "qgoft,lora", "--jobs", "2"])
    assert len(cells) >= planned_run.PARALLEL_FROM
    assert [cell.settings for cell in cells] == [planned_run.compose_cached(cell.overrides[:-1]) for cell in cells]
    few = [cell for cell in cells if cell.settings.task.name in ("cola", "rte")]
    identify.generate(few, 2)
    drawn = {name: pocket_fingerprint(pocket_files("glue", name)) for name in ("cola", "rte") if is_generated("glue", name)}
    assert not is_generated("glue", "stsb")
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "here"))
    assert drawn == {name: pocket_fingerprint(pocket_files("glue", name)) for name in ("cola", "rte")}
