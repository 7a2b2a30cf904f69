"""Messages for mistyped commands, and output when nothing reads it."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from qgoft import records
from qgoft.commands import counts, sweep
from qgoft.config.compose import compose_settings, own_overrides, quote_path, swept_values
from qgoft.console import CHANNEL, RunState
from qgoft.errors import QgoftError
from qgoft.report.items import ITEMS, item_of
from qgoft.report.row import Row
from qgoft.report.table import Table
from qgoft.sweep import display as _display
from qgoft.sweep import planned_run
from qgoft.train.progress import Progress
from tests.forked import run_script
from tests.sweep.planning import suite_runs

SHORT = ["train.max_steps=2", "train.num_evals=1"]


def make(repository, *words):
    return subprocess.run(["make", "-n", *words], capture_output=True, text=True, cwd=repository, timeout=60, check=False)


@pytest.mark.parametrize(("word", "meant"), [("TASK=rte", "TASKS"), ("SEED=3", "SEEDS"), ("METHODS=lora", "METHOD"), ("JOB=1", "JOBS")])
def test_make_misspelled_variable(repository, word, meant):
    done = make(repository, "glue", word)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert f"qgoft: unknown variable {word.partition('=')[0]} (did you mean {meant}?); known are" in said


def test_make_misspelled_target(repository):
    done = make(repository, "gleu")
    assert done.returncode == 2
    assert done.stdout.startswith("qgoft: unknown target gleu (did you mean glue?); known are ")


def test_make_known_variables(repository):
    assert make(repository, "glue", "TASKS=rte", "SEEDS=3", "METHOD=lora", "JOBS=1", "ARGS=train.max_steps=3").returncode == 0
    assert make(repository, "fidelity", "PEFT_GIVENS=/a").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "qgotf"], r"unknown method 'qgotf'.*did you mean qgoft\?"),
        (["--tasks", "rtee"], r"unknown task 'rtee' .*did you mean rte\?"),
        (["--protocol", "pockt"], r"unknown protocol 'pockt'.*did you mean pocket\?"),
        (["--launcher", "slurm"], "unknown launcher 'slurm'; allowed are basic, joblib"),
        (["--records", "mesured"], r"argument --records \(RECORDS of make\): invalid choice: 'mesured'"),
        (["--jobs", "two"], r"argument --jobs \(JOBS of make\): invalid int value: 'two'"),
        (["--method", "lora@x8"], "variant 'x8' of method lora: expected the form r<rank>"),
        (["--method", "lora@r99999999"], "allowed are numbers from 1 to 65,536"),
        (["--seeds", "-1"], "seed '-1': allowed are whole numbers from 0 to 4294967295"),
        (["--seeds", str(2**32)], "allowed are whole numbers"),
        (["--seeds", "3-1"], "seed '3-1': allowed"),
    ],
)
def test_planning_reports_errors(words, message):
    for parse, first in (
        (lambda words: suite_runs(words), "glue"),
        (lambda words: sweep.item_filter(sweep.parse(words)), "table1"),
    ):
        if "--tasks" in words and first == "table1":
            continue
        with pytest.raises(QgoftError, match=message):
            parse([first, *words])


def test_seeds_lists_and_ranges():
    assert planned_run.split_seeds("0,2-4,2,07") == ["0", "2", "3", "4", "7"]
    assert planned_run.split_seeds("") == []


def test_measured_table_shows_all_seeds():
    cells = suite_runs(["glue", "--tasks", "rte", "--records", "measured"])
    assert [cell.settings.seed for cell in cells] == [0, 1, 2]


def test_table_shows_requested_columns():
    item = item_of("glue", "pocket").only(["cola"])
    assert item.titles == ["CoLA"]
    assert item_of("glue", "pocket").only([]) is ITEMS["table1"]


def test_own_protocol_has_a_table():
    assert item_of("glue", "mine") is ITEMS["table1"]
    assert not item_of("glue", "mine").is_comparable("mine")


def test_own_method_has_a_count(monkeypatch):
    base = counts.REGISTRY["lora"]
    monkeypatch.setitem(counts.REGISTRY, "vera", SimpleNamespace(**{**vars(base), "name": "vera"}))
    assert counts.usual_variant("vera") is None, "no recipe names one"
    assert all("vera" not in row[2] for row in counts.build_table().rows)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("method=goft,linear", ["goft", "linear"]),
        ("method=choice(goft,linear)", ["goft", "linear"]),
        ("method=glob(q*)", ["qgoft", "qgoft_v2"]),
        ("method=goft, linear", ["goft", "linear"]),
    ],
)
def test_multirun_accepts_hydra_sweeps(word, names):
    assert swept_values(word, "method") == names


@pytest.mark.parametrize("word", ["method=glob(z*)", "method=choice(", "method=a=b,"])
def test_multirun_empty_sweep(word):
    with pytest.raises(QgoftError, match=r"no match|a list a,b"):
        swept_values(word, "method")


@pytest.mark.parametrize(
    "path",
    [
        "br[1]",
        "a::b",
        "dollar$HOME",
        "run?",
        "x=y",
        "2026",
        "1e3",
        "true",
        "a'b",
        "q${x}",
        "back\\slash",
        "a\\'b",
        "end\\",
        "{x}",
        "a,b",
        " b ",
    ],
)
def test_paths_are_literal_in_overrides(path):
    assert compose_settings([f"results.root={path}"]).results.root == path


def test_home_directory_is_expanded():
    assert compose_settings(["results.root=~/runs"]).results.root == f"{os.path.expanduser('~')}/runs"
    assert quote_path("data.root=null") == "data.root=null"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.max_grad_norm=-1", "optim.max_grad_norm is -1; allowed are positive"),
        ("optim.max_grad_norm=0", "optim.max_grad_norm is 0"),
        ("++model.name=meta-llama/Llama", "model.name is 'meta-llama/Llama'; letters, digits"),
        ("optim.warmup=1e9", "optim.warmup is 1000000000.0; allowed are 0 to 10,000,000"),
        ("optim.warmup=-1", "optim.warmup is -1; allowed are 0 to"),
        ("optim.weight_decay=-1", "optim.weight_decay is -1"),
        ("optim.lr=nan", "optim.lr is nan; a finite number is needed"),
        ("optim.lr=inf", "optim.lr is inf"),
        ("optim.lr=-1", "optim.lr is -1"),
        ("train.num_evals=1000", "train.num_evals is 1000; allowed are 1 to 500"),
        ("train.eval_batch_size=0", "train.eval_batch_size is 0"),
        ("train.max_length=1", "train.max_length is 1; allowed are 4 and more"),
        ("train.epochs=0", "train.epochs is 0"),
        ("train.holdout_rows=-1", "train.holdout_rows is -1"),
        ("method.penalty=-1", "method.penalty is -1"),
        ("results.checkpoint_interval=-1", "results.checkpoint_interval is -1"),
        ("judge.temperature=3", "judge.temperature is 3; allowed are 0 to 2"),
        ("seed=4294967296", "seed is 4294967296"),
        ("++method.options.scal=4", "method.options.scal: method qgoft has no such option; it has none"),
    ],
)
def test_settings_out_of_range(word, message):
    with pytest.raises(QgoftError, match=message):
        compose_settings([word])


def test_method_options_unknown():
    with pytest.raises(
        QgoftError, match=r"method\.options\.scal: method lora has no such option; allowed are scale, dropout; .*did you mean scale\?"
    ):
        compose_settings(["method=lora", "++method.options.scal=4"])
    with pytest.raises(QgoftError, match=r"method\.options\.scale is nan"):
        compose_settings(["method=lora", "method.options.scale=nan"])


@pytest.mark.parametrize(
    ("word", "message"),
    [("train.epochs=1e-9", "less than one of the"), ("optim.warmup=1e6", r"optim\.warmup=1e\+06 steps exceed the \d+ steps")],
)
def test_training_length_invalid(tmp_path, word, message):
    from qgoft.run_id import identify
    from qgoft.train.run import prepare

    words = [word, "train.max_steps=null", *([] if "epochs" in word else ["train.epochs=1"])]
    s = compose_settings(["task=glue/rte", f"results.root={tmp_path}", *words])
    with pytest.raises(QgoftError, match=message):
        prepare(s, identify(s))


def test_record_lists_overrides():
    words = [
        "protocol=pocket",
        "task=glue/rte",
        "method=lora",
        "method.variant=r2",
        "seed=3",
        "optim.lr=0.1",
        "+method.penalty=1",
        "results.root=a",
    ]
    assert own_overrides(words) == ["optim.lr=0.1", "method.penalty=1"]


def run_suite(repository, root, **more):
    return run_script("sweep", "glue", "--tasks", "rte", f"results.root={root}", *SHORT, cwd=repository, **more)


def write_to_full_disk():
    with open("/dev/full", "w") as full:
        os.dup2(full.fileno(), 1)
        os.dup2(full.fileno(), 2)


def write_to_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


@pytest.mark.parametrize("prepare", [write_to_full_disk, write_to_closed_pipe])
def test_lost_output_keeps_the_run(repository, tmp_path, prepare):
    if prepare is write_to_full_disk and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here; the closed pipe is tested")
    done = run_suite(repository, tmp_path, prepare=prepare)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (record,) = records.read_records(tmp_path / "runs")
    assert (record["status"], record["overrides"]) == ("done", ["train.max_steps=2", "train.num_evals=1"])


@pytest.mark.parametrize("words", [["scripts/report.py"], ["-m", "qgoft", "glue"]])
def test_configs_directory_missing(repository, tmp_path, words):
    environment = {**os.environ, "QGOFT_CONFIGS": str(tmp_path)}
    done = subprocess.run([sys.executable, *words], cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"qgoft: QGOFT_CONFIGS={tmp_path}: no train.yaml there")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_jobs_are_the_cores_of_the_job():
    """A SLURM job may use some cores of its node."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert sweep.parse(["glue"]).jobs == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_results_root_is_a_file(repository, tmp_path):
    (tmp_path / "file").touch()
    done = run_suite(repository, tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert ": not a directory; expected a directory" in done.stderr


def test_results_root_not_creatable(repository):
    done = run_suite(repository, "/proc/none/results")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qgoft: results.root=/proc/none/results: cannot be created")


def test_run_directory_of_another_run(repository, tmp_path):
    """Its record has another key: the run is not finished, and is executed."""
    words = [f"results.root={tmp_path}", "task=glue/rte", *SHORT]
    from qgoft.run_id import identify
    from qgoft.train.run import run

    one, other = compose_settings([*words, "seed=0"]), compose_settings([*words, "seed=1"])
    run(one)
    copied = identify(other)
    copied.directory.mkdir(parents=True)
    (copied.directory / "record.json").write_text((identify(one).directory / "record.json").read_text())
    assert copied.state()[0] == "corrupt"
    assert not copied.is_done
    (problem,) = records.find_records(tmp_path).problems
    assert "it is the record of run" in problem
    assert run(other)["seed"] == 1
    assert not records.find_records(tmp_path).problems


def test_record_without_checksum(tmp_path):
    path = records.write_record(tmp_path, {**RECORD_WITH_FILES(), "files": {"history.jsonl": "0" * 64}})
    content = json.loads(path.read_text())
    del content["checksum"]
    content["metrics"]["matthews"]["value"] = 99.9
    path.write_text(json.dumps(content))
    (problem,) = records.find_records(tmp_path).problems
    assert "its checksum is missing" in problem


def RECORD_WITH_FILES():  # noqa: N802 - imported late, since composing takes time
    from tests.records.test_records import RECORD

    return RECORD


# --- the display ---------------------------------------------------------------------------------------------------------------------------


def test_worker_reports_state_to_parent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(CHANNEL, str(tmp_path))
    progress = Progress(compose_settings(["task=glue/rte"]))
    progress.step(20, 200, 0.5)
    progress.evaluated(20, 200, 71.0)
    progress.say("a line")
    assert capsys.readouterr() == ("", "")
    (state,) = tmp_path.glob("*.json")
    shown = RunState(**json.loads(state.read_text()))
    assert (shown.step, shown.total, shown.loss) == (20, 200, 0.5)
    (log,) = tmp_path.glob("*.log")
    assert log.read_text() == "a line\n"
    progress.close()
    assert not list(tmp_path.glob("*.json"))


def test_progress_line_fits_the_terminal():
    from rich.console import Console

    state = RunState("commonsense/hellaswag  lora_xs@r136-formula (random)", 2, 19999, 20000, 0.123456, "pearson_spearman 99.99", 3599.0)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(state.line())
    (line,) = console.export_text().rstrip("\n").split("\n")
    assert len(line.rstrip()) <= 80
    assert line.rstrip().endswith("59:59")


def test_remaining_time_includes_running_runs(monkeypatch, capsys):
    """Two at a time; the first two took ten seconds, so six more take thirty."""
    now = [0.0]
    monkeypatch.setattr(_display.time, "monotonic", lambda: now[0])
    display = _display.Display(2)
    now[0] = 10.0
    display.ended(2, 8, 0)
    assert "2 of 8 runs ended, about 0 min 16 s left" in capsys.readouterr().err
    display.ended(8, 8, 1)
    assert "8 of 8 runs ended, 1 of them not done\n" in capsys.readouterr().err


def test_wide_table_is_folded():
    table = Table("t", "a title", ["method", *(f"task {i}" for i in range(12))], [["qgoft", *["80.0 ±1.0"] * 12]], ["a note " * 30])
    lines = table.terminal(80).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("method") for line in lines) == 2
    assert sum(line.count("80.0 ±1.0") for line in lines) == 12
    assert max(map(len, table.terminal().splitlines())) > 80


def test_table_counts_excluded_runs():
    assert Row("a", {}).others == 0
