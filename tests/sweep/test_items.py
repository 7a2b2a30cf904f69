"""Items of the papers: their grids, narrowing them, running them, and what several sweeps at once do."""

import contextlib
import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qgoft import records
from qgoft.commands import execution as _command
from qgoft.commands import items as paper
from qgoft.commands import suite
from qgoft.config.compose import compose_settings
from qgoft.errors import QgoftError
from qgoft.report import rows as _tables
from qgoft.report.cost import PRINTED
from qgoft.report.items import CHART, ITEMS, OWN
from qgoft.report.published import load_paper, load_rows
from qgoft.report.score_table import build_table
from qgoft.run_id import key_from_record
from qgoft.sweep import launch as _sweep
from qgoft.sweep import plan as _plan
from qgoft.sweep.launch import ExecutorOptions, processes, schedule_order
from qgoft.train.run import run

SHORT = ["train.max_steps=4", "train.num_evals=1"]
PROTOCOL = {"goft-icml2024": "goft_icml24", "psoft-iclr2026": "psoft_iclr26"}


def start(repository, tmp_path, *words):
    line = [sys.executable, str(repository / "scripts" / "paper.py"), *words, f"results.root={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository, env=environment)


def command(repository, tmp_path, *words):
    process = start(repository, tmp_path, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def words_of(name, **ask):
    item = _plan.read_items(ask.get("protocol", "pocket"))[name]
    return _plan.item_overrides(item, _plan.ItemFilter(**{"protocol": "pocket", **ask}))


def test_every_item_has_a_target_and_a_way_to_be_printed(repository):
    targets = re.search(r"^ITEMS := (.*?[^\\])$", (repository / "Makefile").read_text(), re.M | re.S)[1].replace("\\\n", " ").split()
    items = _plan.read_items("pocket") | _plan.read_items("small")
    assert sorted(targets) == sorted(items)
    runs = {name for name, item in items.items() if item.bench is None}
    assert runs == {*ITEMS, "figure3"}
    assert set(items) - runs == set(PRINTED)


def test_every_item_that_the_issue_names():
    wanted = [*(f"table{n}" for n in (1, 2, 3, 4, 10)), "figure3", "flexibility", "lambda", "psoft-figure3", "psoft-figure4"]
    wanted += [f"psoft-table{n}" for n in (2, 3, 4, 5, 6, 7, 13, 15, 16, 17, 18, 19, 20, 21, 22)]
    assert set(wanted) <= set(_plan.read_items("goft_icml24"))


def test_items_without_published_values_say_why():
    own = {*paper.own_items("pocket"), *paper.own_items("small")}
    assert {name: item.no_published_values for name, item in ITEMS.items() if item.no_published_values} == {
        "flexibility": CHART,
        "lambda": CHART,
        **dict.fromkeys(own, OWN),
    }


def measured_cells(*words, seeds=("0", "1", "2")):
    ask = paper.item_filter(
        paper.parse(["table1", "--method", "goft", "--tasks", "rte", "--seeds", ",".join(seeds), "--jobs", "1", *words])
    )
    (part,) = paper.plan_items(["table1"], ask)
    (cells,) = paper.compose_parts([part], 1)
    return part, ask, cells


def rows_from(found, *words, **more):
    part, ask, cells = measured_cells(*words, **more)
    return paper.rows_of(part, cells, ask, _tables.RecordLibrary(_plan.RecordIndex(found), {}))


@pytest.fixture(scope="module")
def goft_on_rte():
    found = _tables.RecordLibrary.read(_tables.MEASURED).index.records  # read once a process
    return [r for r in found if (r["protocol"], r["method"], r["variant"], r["task"]) == ("pocket", "goft", "goft", "rte")]


@pytest.mark.parametrize(("kind", "name"), [("model", "sha256"), ("data", "fingerprint")])
def test_runs_on_other_data_or_weights_are_no_seeds_of_a_row(goft_on_rte, kind, name):
    found = copy.deepcopy(goft_on_rte)
    newest = max(found, key=lambda record: record["finished"])
    for record in found:
        if record is not newest:
            record["provenance"][kind][name] = "e" * 64
            record["key"] = key_from_record(record)
    (row,) = rows_from(found)
    assert row.records == {"rte": [newest]}
    table = build_table("glue", "pocket", [row], item=ITEMS["table1"])
    assert "warning: left out 2 runs on other data or weights than the newest of their row" in table.notes
    (whole,) = rows_from(goft_on_rte)
    assert len(whole.all()) == 3
    assert whole.left_out == 0


def test_runs_on_official_rows_are_none_of_the_twin(goft_on_rte):
    found = copy.deepcopy(goft_on_rte)
    found[0]["settings"]["data"]["source"] = "hub"
    (row,) = rows_from(found)
    assert len(row.all()) == 2


def test_a_cell_that_is_asked_for_twice_counts_once(goft_on_rte):
    part, ask, cells = measured_cells(seeds=("0", "0", "1"))
    assert [cell.settings.seed for cell in cells] == [0, 1]
    (row,) = paper.rows_of(part, [*cells, *cells], ask, _tables.RecordLibrary(_plan.RecordIndex(goft_on_rte), {}))
    assert [len(row.all()), row.planned] == [2, {"rte": 2}]


@pytest.mark.parametrize(
    ("word", "is_altered"),
    [("results.root=elsewhere", False), ("model.path=a", False), ("+wandb.mode=offline", False), ("optim.max_grad_norm=2.0", True)],
)
def test_only_what_moves_a_number_alters_a_row(goft_on_rte, word, is_altered):
    part, ask, cells = measured_cells()
    ask = dataclasses.replace(ask, overrides=(word,))
    part = dataclasses.replace(part, overrides=tuple(((*words, word), seeds) for words, seeds in part.overrides))
    cells = [dataclasses.replace(cell, overrides=(*cell.overrides, word)) for cell in cells]
    (row,) = paper.rows_of(part, cells, ask, _tables.RecordLibrary(_plan.RecordIndex(goft_on_rte), {}))
    assert row.is_altered is is_altered


@pytest.mark.parametrize(
    ("words", "is_altered"),
    [
        (["train.batch_size=16", "train.gradient_accumulation_steps=2", "train.gradient_checkpointing=true"], False),
        (["train.batch_size=16"], True),
        (["train.batch_size=16", "train.gradient_accumulation_steps=2", "optim.max_grad_norm=2.0"], True),
    ],
)
def test_a_batch_in_passes_is_the_same_training(words, is_altered):
    """As a run that is out of memory advises."""
    own = ["task=glue/rte", "method=goft", "seed=0"]
    cell = _plan.PlannedRun((*own, *words), compose_settings([*own, *words]))
    assert _tables.is_altered(cell) is is_altered
    assert _tables._is_altered_by(set(words), cell) is is_altered


def test_figure_3_prints_the_wins(capsys, tmp_path):
    """Those of the committed ratings; without any, that there are none."""
    assert paper.main(["figure3", "--records", "measured", "--jobs", "1", f"results.root={tmp_path}"]) == 0
    assert "won" in capsys.readouterr().out
    assert paper.main(["figure3", "--action", "table", "--jobs", "1", f"results.root={tmp_path}"]) == 0
    assert "figure3: no run is done yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(ITEMS) - {"flexibility", "lambda", *paper.own_items("pocket"), *paper.own_items("small")}))
def test_a_grid_has_every_row_that_is_printed(name):
    """Under the paper's own protocol: method and variant, layers and penalty, of each printed row. What the paper has not is ours."""
    item = ITEMS[name]
    asked, left_out = words_of(name, protocol=PROTOCOL[item.paper])
    assert not left_out
    made = [dict(word.split("=", 1) for word in words) for words, _ in asked]
    for row in load_rows(item.paper, item.table):
        fitting = [m for m in made if m["method"] == row.method and (row.targets is None or m.get("method.targets") in (row.targets, None))]
        if row.penalty is not None:
            fitting = [m for m in fitting if float(m["method.penalty"]) == row.penalty]
        if any("method.variant" in m for m in fitting):
            fitting = [m for m in fitting if m.get("method.variant", row.variant) == row.variant]
        assert fitting, f"{name} has no row of {row}"


@pytest.mark.parametrize("protocol", ["pocket", "paper"])
@pytest.mark.parametrize("name", sorted({*ITEMS, "figure3"}))
def test_items_compose(name, protocol):
    own = PROTOCOL[ITEMS["table2" if name == "figure3" else name].paper] if protocol == "paper" else "pocket"
    if name not in _plan.read_items(own):
        assert name in ("pictures", "real-glue")  # of one protocol
        return
    asked, _ = words_of(name, protocol=own)
    for words, seeds in {0: asked[0], 1: asked[-1]}.values():
        settings = compose_settings([*words])
        assert settings.protocol == own
        assert seeds
    assert {seeds for _, seeds in asked} == ({("0", "1", "2", "3", "4")} if protocol == "paper" else {seeds for _, seeds in asked})


def test_the_embedded_twin_has_the_seeds_it_says():
    """Three for GLUE, SQuAD and the ablations on them, one for VTAB and the decoders."""
    for name in {*ITEMS, "figure3"} - {"pictures", "real-glue"}:
        asked, _ = words_of(name)
        is_one = any(word.startswith(("task=vtab", "task=instruct", "task=math", "task=commonsense")) for word in asked[0][0])
        assert {seeds for _, seeds in asked} == {("0",) if is_one else ("0", "1", "2")}, name


def test_items_are_narrowed():
    asked, _ = words_of("table1", methods=("lora", "qgoft"), tasks=("rte", "glue/cola"), seeds=("7",))
    assert len(asked) == 4
    assert {seeds for _, seeds in asked} == {("7",)}
    added, _ = words_of("table1", methods=("lora@r2", "hra"), tasks=("rte",))
    assert [words[2:] for words, _ in added] == [("method=lora", "method.variant=r2"), ("method=hra",)]
    blocks, _ = words_of("table1", methods=("oft_paper@b4",), tasks=("rte",))
    assert [words[2:] for words, _ in blocks] == [("method=oft_paper", "method.variant=b4")]
    scales, _ = words_of("psoft-figure3", methods=("psoft@r64-alpha",))
    assert len(scales) == 1
    gamma, _ = words_of("psoft-table6", methods=("psoft",), tasks=("gsm8k",))
    assert {words[2] for words, _ in gamma} == {"method=psoft"}
    with pytest.raises(QgoftError, match=r"psoft-table6 has no row of goft; it has lora_xs, psoft; change METHOD"):
        words_of("psoft-table6", methods=("goft",))
    with pytest.raises(QgoftError, match=r"table4 has no task 'rte'; it has squad/v1; change TASKS"):
        words_of("table4", tasks=("rte",))


def test_all_items_are_narrowed_to_those_that_have_what_is_asked():
    """`make fetch TASKS=v1` and `make paper TASKS=v1`."""
    parts = paper.plan_items(["all"], _plan.ItemFilter("pocket", tasks=("v1",)))
    assert [part.item.name for part in parts if part.overrides] == ["table4"]
    with pytest.raises(QgoftError, match=r"has no task 'wnli'"):
        paper.plan_items(["all"], _plan.ItemFilter("pocket", tasks=("wnli",)))


def test_cells_that_a_protocol_lacks_are_told():
    asked, left_out = words_of("table1", protocol="psoft_iclr26")
    assert {words[1] for words, _ in asked} == {f"task=glue/{t}" for t in ("sst2", "cola", "qnli", "rte", "mrpc", "stsb")}
    assert "bitfit on glue/cola: no row in the paper's table 2" in left_out
    with pytest.raises(QgoftError, match=r"protocol small has nothing of item table3: .*no image encoder; change PROTOCOL"):
        paper.plan_items(["table3"], _plan.ItemFilter("small"))
    with pytest.raises(QgoftError, match="unknown item 'table99'"):
        paper.plan_items(["table99"], _plan.ItemFilter("pocket"))


def test_settings_that_were_composed_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    asked = [words for words, _ in words_of("table1", tasks=("rte", "cola"))[0]]
    first = _plan.compose_all(asked, 1)
    (kept,) = (tmp_path / "settings").glob("*.json")
    monkeypatch.setattr(_plan, "compose_cached", None)  # nothing is composed again, wherever the results go
    again = _plan.compose_all([(*words, "results.root=there") for words in asked], 1)
    assert [s.results.root for s in again] == ["there"] * len(asked)
    assert [repr(s).replace("'there'", "'results'") for s in again] == [repr(s) for s in first]
    kept.write_text("{cut sh")
    monkeypatch.undo()
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    assert _plan.compose_all(asked, 1) == first


def test_one_seed_of_everything_first_and_one_training_once(monkeypatch):
    asked = [(f"task={task}", f"method={method}") for method in ("qgoft", "lora") for task in ("math/gsm8k", "math/math")]
    cells = _plan.compose_runs(asked, ["0", "1"], 1)
    order = schedule_order(dict(enumerate(cells)))
    assert [cell.settings.seed for _, cell in order] == [0] * 4 + [1] * 4
    assert [cell.settings.method.name for _, cell in order[:4]] == ["qgoft", "lora", "qgoft", "lora"]
    assert [cell.settings.task.name for _, cell in order[:4]] == ["gsm8k", "gsm8k", "math", "math"]


def test_commands_of_several_processes():
    assert "--nproc_per_node=2" in processes(ExecutorOptions(1, nproc=2))
    assert any(word.endswith("fsdp2.yaml") for word in processes(ExecutorOptions(1, nproc=2, accelerate="fsdp2")))


def test_expected_time(tmp_path):
    cells = _plan.compose_runs([("task=glue/rte", "method=lora")], ["0", "1"], 1)
    assert _plan.expected_seconds(cells, [], "pocket") == 2 * _plan.TYPICAL_SECONDS["pocket"]["glue"]
    other = _plan.compose_runs([("task=glue/rte", "method=lora", "protocol=goft_icml24")], ["0"], 1)
    assert _plan.expected_seconds(other, [], "goft_icml24") is None
    record = {
        "protocol": "pocket",
        "status": "done",
        "suite": "glue",
        "method": "lora",
        "started": "2026-01-01T00:00:00+00:00",
        "provenance": {},
    }
    seen = [{**record, "finished": "2026-01-01T00:00:05+00:00"}, {**record, "finished": "2025-12-31T00:00:00+00:00"}]
    assert _plan.expected_seconds(cells, seen, "pocket") == 10, "a clock that went backwards says nothing"
    resumed = {**seen[0], "provenance": {"resumed": [{}]}, "cost": {"setup_seconds": 1.0, "seconds": 99.0}}
    assert _plan.expected_seconds(cells, [resumed], "pocket") == 200, "the beginning is that of its last part"
    assert _plan.format_duration(59) == "0 min 59 s"
    assert _plan.format_duration(7260) == "2 h 01 min"


@pytest.mark.slow
def test_two_sweeps_share_the_work_and_a_table_comes_out(repository, tmp_path):
    words = ("psoft-table7", "--tasks", "rte", "--seeds", "0", "--jobs", "1", *SHORT)
    sweeps = [start(repository, tmp_path, *words) for _ in range(2)]
    outputs = [sweep.communicate(timeout=300) for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert len(records.read_records(tmp_path / "runs")) == 3
    lines = [line for _, err in outputs for line in err.splitlines() if "  seed 0  accuracy" in line]
    assert len(lines) == 3, "every run was made once"
    assert all("psoft@r64-borth (altered)" in out for out, _ in outputs)
    assert not list(tmp_path.rglob("lease.*"))
    table = (tmp_path / "tables" / "psoft-table7.md").read_text()
    assert "published psoft@r64-borth (DeBERTaV3-base, other data; context only): 52.71  67.97" in table
    code, out, _ = command(repository, tmp_path, *words, "--action", "status")
    assert code == 0
    assert "3 runs: 3 done" in out


@pytest.mark.slow
def test_a_killed_worker_is_begun_again(repository, tmp_path):
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
        "train.max_steps=60",
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
    assert "was killed; it is begun once more" in err
    assert {record["method"] for record in records.read_records(tmp_path / "runs")} == {"goft", "qgoft"}


@pytest.mark.slow
def test_an_error_that_nobody_foresaw_ends_its_run_and_no_other(monkeypatch, capsys):
    """Before a run has a record: a decomposition that does not converge, a promise that is broken, no memory for the weights."""
    cells = _plan.compose_runs([("task=glue/rte", "method=qgoft"), ("task=glue/cola", "method=qgoft")], ["0"], 1)
    run_ids = [SimpleNamespace(is_done=False, folder=Path("nowhere"), key=str(n)) for n in range(2)]

    def train(settings, words):
        if settings.task.name == "rte":
            raise RuntimeError("SVD did not converge")
        return {"status": "done", "reason": None}

    monkeypatch.setattr("qgoft.sweep.worker.train", train)
    (bad,) = _sweep.sweep(cells, run_ids, ExecutorOptions(1))
    assert (bad.number, bad.status, bad.reason) == (0, "failed", "RuntimeError: SVD did not converge")
    assert "2 of 2 runs ended, 1 of them not done" in capsys.readouterr().err


def test_a_run_of_another_sweep_in_several_processes_is_waited_for(monkeypatch, tmp_path):
    cell = _plan.compose_runs([("task=glue/rte", "method=qgoft")], ["0"], 1)[0]
    for state, status in ((("running", "process 8 on a"), "held"), (("done", ""), "done"), (("planned", ""), "refused")):
        monkeypatch.setattr(_sweep, "processes", lambda means: ["false"])
        run_id = SimpleNamespace(state=lambda state=state: state, folder=tmp_path, read=lambda: None, pop_rank_failure=lambda: None)
        assert _sweep._run_in_processes(0, cell, run_id, ExecutorOptions(1, nproc=2)).status == status
    # What an earlier attempt left does not speak for this one.
    old = {"status": "interrupted", "started": "yesterday"}
    left = [("oom", "process 1: no memory"), None]
    interrupted = ("interrupted", "stopped from the keyboard")
    run_id = SimpleNamespace(state=lambda: interrupted, folder=tmp_path, read=lambda: old, pop_rank_failure=left.pop)
    outcome = _sweep._run_in_processes(0, cell, run_id, ExecutorOptions(1, nproc=2))
    assert (outcome.status, outcome.reason) == ("refused", "it ended with exit code 1 and left no record; see above")
    outcome = _sweep._run_in_processes(0, cell, run_id, ExecutorOptions(1, nproc=2))
    assert (outcome.status, outcome.reason) == ("oom", "process 1: no memory")
    monkeypatch.setattr(_sweep, "processes", lambda means: pytest.fail("started beside another one"))
    (tmp_path / "lease.0.json").write_text(json.dumps({"host": "elsewhere", "pid": 8}))
    assert _sweep._run_in_processes(0, cell, run_id, ExecutorOptions(1, nproc=2)) == _sweep.RunOutcome(0, "held", "process 8 on elsewhere")


class Marked:
    """The identity of a run that leaves files instead of records."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    @property
    def is_done(self):
        return (self.folder / "done").is_file()


def sweep_of(monkeypatch, folders, execute_run, **means):
    """A sweep of two processes whose runs are a function of their number."""
    cells = _plan.compose_runs([("task=glue/rte", "method=qgoft")], [str(n) for n in range(len(folders))], 1)
    monkeypatch.setattr(_sweep, "execute_run", execute_run)
    return _sweep.sweep(cells, folders, ExecutorOptions(2, **means))


def test_of_runs_that_were_killed_together_the_one_that_did_it_is_known(monkeypatch, tmp_path, capsys):
    """The system kills a process for want of memory, and the pool goes down with all runs that it had begun."""
    marked = [Marked(tmp_path / str(n)) for n in range(3)]

    def execute_run(number, cell):
        import os
        import time

        from qgoft.sweep.launch import RunOutcome

        (tmp_path / str(number) / "lease.0.json").write_text("{}")
        while not (tmp_path / "0" / "lease.0.json").is_file() or not (tmp_path / "1" / "lease.0.json").is_file():
            time.sleep(0.01)
        if number == 1:
            os.kill(os.getpid(), 9)
        time.sleep(0.5)
        (tmp_path / str(number) / "done").touch()
        return RunOutcome(number, "done", "")

    (bad,) = sweep_of(monkeypatch, marked, execute_run)
    assert (bad.number, bad.status) == (1, "failed")
    assert "its process was killed 2 times" in bad.reason
    assert [one.is_done for one in marked] == [True, False, True]
    assert capsys.readouterr().err.count("it is begun once more") == 2


def test_processes_that_die_before_any_run_end_the_sweep(monkeypatch, tmp_path):
    def execute_run(number, cell):
        import os

        os.kill(os.getpid(), 9)

    with pytest.raises(QgoftError, match=r"killed 2 times before one had begun a run.*try fewer JOBS"):
        sweep_of(monkeypatch, [Marked(tmp_path / str(n)) for n in range(2)], execute_run)


def test_failfast_has_what_runs_save_itself(monkeypatch, tmp_path):
    def execute_run(number, cell):
        import time

        from qgoft.sweep.launch import RunOutcome
        from qgoft.train.interrupts import SignalHandler

        (tmp_path / str(number) / "begun").touch()
        if number == 0:
            while not (tmp_path / "1" / "begun").is_file():
                time.sleep(0.01)
            return RunOutcome(0, "diverged", "a test")
        with contextlib.suppress(KeyboardInterrupt), SignalHandler() as signals, signals.defer():
            while signals.pending is None:
                time.sleep(0.01)
        return RunOutcome(number, "interrupted", "saved")

    found = {o.number: o.status for o in sweep_of(monkeypatch, [Marked(tmp_path / str(n)) for n in range(4)], execute_run, failfast=True)}
    assert (found[0], found[1], found[3]) == ("diverged", "interrupted", "planned")
    assert found[2] in ("interrupted", "planned")


class Cluster:
    """What submitit's executor is asked, and jobs that come to what they are told."""

    def __init__(self, monkeypatch, array=1001, ends=lambda number: _sweep.RunOutcome(number, "done", ""), refuses=None):
        self.asked, self.parameters, self.arrays, self.cancelled, self.refuses = {}, {}, [], [], refuses
        self.ends = ends
        helpers = SimpleNamespace(as_completed=list)
        monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=self.begin, helpers=helpers))
        monkeypatch.setattr(_sweep.shutil, "which", lambda name: name)
        told = SimpleNamespace(stdout=f"MaxArraySize            = {array}\n")
        monkeypatch.setattr(_sweep.subprocess, "run", lambda *_, **__: told)
        monkeypatch.setenv("PYTHONPATH", "")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def begin(self, **asked):
        self.asked = asked
        return self

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    @contextlib.contextmanager
    def batch(self):
        self.arrays.append([])
        yield
        if self.refuses and len(self.arrays) == self.refuses:
            raise RuntimeError(
                "Error during bash call:\nsbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed"
            )

    def submit(self, job):
        self.arrays[-1].append(job.number)
        return SimpleNamespace(
            job_id=str(job.number), result=lambda: self.ends(job.number), cancel=lambda check: self.cancelled.append(job.number)
        )


def of_cluster(cluster, tmp_path, count, *words, launcher="submitit_slurm", **means):
    asked = [("task=glue/rte", "method=qgoft", f"results.root={tmp_path}", *words)]
    cells = _plan.compose_runs(asked, [str(seed) for seed in range(count)], 1)
    return _sweep.sweep(cells, [None] * count, ExecutorOptions(4, launcher=launcher, **means))


def test_more_jobs_than_slurm_takes_in_an_array_are_several(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, array=3)
    assert of_cluster(cluster, tmp_path, 8) == []
    assert cluster.arrays == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert cluster.parameters["slurm_array_parallelism"] == 1, "four at a time among three arrays"


def test_what_sbatch_does_not_take_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(
        QgoftError, match=r"the jobs were not taken: sbatch: error: invalid partition specified: gpuu; 3 jobs are queued and go on"
    ):
        of_cluster(Cluster(monkeypatch, array=3, refuses=2), tmp_path, 8)


def test_only_what_keeps_checkpoints_is_queued_again_after_its_time(monkeypatch, tmp_path):
    for words, means, times in (
        ((), {}, _sweep.REQUEUES),
        (("results.checkpoint_interval=null",), {}, 0),
        ((), {"accelerate": "fsdp2"}, 0),
    ):
        cluster = Cluster(monkeypatch)
        of_cluster(cluster, tmp_path, 1, *words, **means)
        assert cluster.asked["slurm_max_num_timeout"] == times


def test_failfast_on_a_cluster_says_what_was_not_begun(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch, ends=lambda number: _sweep.RunOutcome(number, "diverged", "a test"))
    found = of_cluster(cluster, tmp_path, 3, failfast=True)
    assert [(o.number, o.status) for o in found] == [(0, "diverged"), (1, "planned"), (2, "planned")]
    assert cluster.cancelled == [0, 1, 2]


def test_ctrl_c_cancels_the_jobs_that_the_sweep_waits_for(monkeypatch, tmp_path, capsys):
    def stop(number):
        if number:
            raise KeyboardInterrupt
        return _sweep.RunOutcome(0, "done", "")

    cluster = Cluster(monkeypatch, ends=stop)
    with pytest.raises(KeyboardInterrupt):
        of_cluster(cluster, tmp_path, 3)
    assert cluster.cancelled == [0, 1, 2]
    assert "2 jobs are cancelled; with DETACH=1 they would go on by themselves" in capsys.readouterr().err


def test_jobs_of_this_machine_have_a_share_of_its_cores_and_no_limit(monkeypatch, tmp_path):
    cluster = Cluster(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(_sweep.os, "cpu_count", lambda: 16)
    of_cluster(cluster, tmp_path, 1, launcher="submitit_local", overrides=("hydra.launcher.timeout_min=7",))
    assert cluster.parameters["timeout_min"] == 7
    assert os.environ["OMP_NUM_THREADS"] == "4", "sixteen cores among four jobs"
    of_cluster(cluster, tmp_path, 1, launcher="submitit_local")
    assert cluster.parameters["timeout_min"] == _sweep.LOCAL_MINUTES
    with pytest.raises(QgoftError, match=r"would start all 8 runs at once, and JOBS is 4"):
        of_cluster(cluster, tmp_path, 8, launcher="submitit_local", detach=True)


@pytest.mark.parametrize(
    ("given", "asked", "seen"), [("2,5", (), "2,5"), (None, (), None), ("2,5", ("hydra.launcher.gpus_per_node=1",), "0")]
)
def test_jobs_of_this_machine_see_its_gpus(monkeypatch, given, asked, seen):
    """submitit's local executor sets the variable for them, to nothing where it is asked for no GPUs."""
    monkeypatch.setenv(_sweep.GPUS, given or "")
    if given is None:
        monkeypatch.delenv(_sweep.GPUS)
    job = _sweep.Job(0, None, ExecutorOptions(1, launcher="submitit_local", overrides=asked), None)
    monkeypatch.setenv(_sweep.GPUS, "0" if asked else "")
    monkeypatch.setattr(_sweep, "execute_run", lambda *_: _sweep.RunOutcome(0, "done", str(os.environ.get(_sweep.GPUS))))
    assert job().reason == str(seen)


def test_processes_that_left_after_a_signal_begin_again(monkeypatch):
    """submitit lets SIGTERM pass; a run of several processes has saved itself and left."""
    came = [_sweep.RunOutcome(0, status, "") for status in ("done", "interrupted", "interrupted")]
    monkeypatch.setattr(_sweep, "_run_in_processes", lambda *_: came.pop())
    assert _sweep.Job(0, None, ExecutorOptions(1, nproc=2), None)().status == "done"
    monkeypatch.setattr(_sweep, "execute_run", lambda *_: _sweep.RunOutcome(0, "interrupted", ""))
    assert _sweep.Job(0, None, ExecutorOptions(1), None)().status == "interrupted"


def test_words_that_are_added_to_the_launcher_are_the_launchers():
    words = ["+hydra.launcher.additional_parameters.reservation=x", "hydra.launcher.partition=p", "optim.max_grad_norm=2"]
    assert _command.run_overrides(words) == ["optim.max_grad_norm=2"]
    arguments = SimpleNamespace(overrides=words, launcher="submitit_slurm", nproc=1, accelerate="", failfast=False, detach=False)
    assert _command.executor_options(arguments, 1).overrides == tuple(words[:2])


def test_jobs_are_submitted_in_the_order_of_a_sweep(monkeypatch, tmp_path):
    """One seed of all before the next, and one task of a shared training before the others, which would hold their GPUs and wait."""
    asked = [
        (f"task=commonsense/{task}", f"method={method}", f"results.root={tmp_path}")
        for method in ("lora", "full")
        for task in ("boolq", "piqa")
    ]
    cells = _plan.compose_runs(asked, ["0", "1"], 1)
    cluster = Cluster(monkeypatch)
    _sweep.sweep(cells, [None] * len(cells), ExecutorOptions(len(cells), launcher="submitit_local", detach=True))
    every = [cells[number].settings for array in cluster.arrays for number in array]
    submitted = [(settings.seed, settings.method.name, settings.task.name) for settings in every]
    of_a_seed = [("lora", "boolq"), ("full", "boolq"), ("lora", "piqa"), ("full", "piqa")]
    assert submitted == [(seed, *names) for seed in (0, 1) for names in of_a_seed]


def test_jobs_of_submitit(repository, tmp_path):
    """The local executor runs the same jobs as SLURM's. One that was refused says why."""
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
        (["--detach"], "DETACH leaves jobs to a cluster; set LAUNCHER=submitit_slurm"),
        (["--launcher", "submitit_local", "hydra.launcher.partitionn=x"], "the settings of the launcher do not compose"),
        (["--launcher", "submitit_slurm"], "no SLURM"),
    ],
)
def test_mistakes_about_launchers(repository, tmp_path, words, message):
    if message == "no SLURM" and shutil.which("sbatch"):
        pytest.skip("this machine has SLURM")
    code, _, err = command(repository, tmp_path, "flexibility", "--method", "goft", "--tasks", "rte", "--seeds", "0", *words, *SHORT)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_failures_are_all_named_at_the_end(repository, tmp_path):
    code, out, err = command(
        repository, tmp_path, "flexibility", "--method", "lora,qgoft", "--tasks", "rte", "--seeds", "0", "--jobs", "1", "optim.lr=1.0e+18",
        "optim.max_grad_norm=null", "selection=last", *SHORT,
    )  # fmt: skip
    assert code == 1
    named = [line for line in err.splitlines() if "is not done: diverged" in line]
    assert len(named) == 2
    assert "diverged" in out, "the table shows what happened"


def test_failfast_leaves_the_rest(repository, tmp_path):
    code, _, err = command(
        repository, tmp_path, "flexibility", "--method", "lora,qgoft", "--tasks", "rte", "--seeds", "0", "--jobs", "1", "--failfast",
        "optim.lr=1.0e+18", "optim.max_grad_norm=null", "selection=last", *SHORT,
    )  # fmt: skip
    assert code == 1
    assert len(records.read_records(tmp_path / "runs")) == 1
    assert "not begun: FAILFAST stopped the sweep" in err


def test_a_table_prints_around_broken_records(repository, tmp_path):
    """Torn, of an older schema, with NaN: named and left out, and the rest is there."""
    run(compose_settings(["task=glue/rte", "method=goft", f"results.root={tmp_path}", *SHORT]))
    (good,) = (tmp_path / "runs").glob("*/record.json")
    record = json.loads(good.read_text())
    for name, text in (
        ("torn", good.read_text()[:300]),
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
    for name, reason in (("torn", "Unterminated|Expecting"), ("older", "schema is 0"), ("nan", "is nan")):
        assert re.search(rf"{name}/record.json: .*({reason})", out), out
    assert re.search(r"goft \(altered\) .* \d\d\.\d", out)


def test_items_without_runs_print_what_is_published(repository, tmp_path):
    code, out, _ = command(repository, tmp_path, "table10")
    assert code == 0
    assert "measured on cpu" in out
    assert str(load_paper("goft-icml2024")["table10"]["rows"]["qgoft"][0]) in (tmp_path / "tables" / "table10-published.md").read_text()


def test_looking_and_fetching_go_on_past_what_cannot_be_had(tmp_path, capsys):
    words = [("task=glue/rte",), ("protocol=psoft_iclr26", "task=math/math", "method=lora", f"data.root={tmp_path}", "data.source=hub")]
    cells = [_plan.PlannedRun(some, compose_settings([*some, f"results.root={tmp_path}"])) for some in words]
    problems = {}
    keyed, run_ids = _plan.identify_all([*cells, cells[1]], 1, problems)
    assert [cell.settings.task.full_name for cell in keyed] == ["glue/rte"]
    assert len(run_ids) == 1
    (name,) = problems
    assert name == f"math/math with {cells[1].settings.model.name}"
    assert _command.print_problems({**problems, "math/gsm8k": problems[name]}) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"qgoft: left out {name}, math/gsm8k: ")
    with pytest.raises(QgoftError):
        _plan.identify_all(cells, 1)


@pytest.mark.parametrize("words", [["--action", "status"], ["--launcher", "submitit_slurm"]])
def test_another_machine_s_gpus_are_not_asked_for_here(words):
    suite.parse(["glue", "--nproc", "64", "--accelerate", "fsdp2", *words])
