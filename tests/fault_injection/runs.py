"""Short runs for fault injection, executed in processes of their own."""

import gzip
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgoft.cli import exit_code
from qgoft.config.compose import compose_settings
from qgoft.config.settings import RunSettings
from qgoft.errors import QgoftError
from qgoft.pocket.data import pocket_files
from qgoft.records import canonical_json, read_record

TASKS, IMAGES, ROWS = ("rte", "stsb", "mrpc", "sst2"), "dtd", 32
METHODS = ("qgoft", "lora", "adalora", "full", "goft")
STEPS = 8
SHORT = (f"train.max_steps={STEPS}", "train.num_evals=2", "train.batch_size=4", "results.checkpoint_interval=0")
# Parts of an outcome, and fields of a record that differ when the same run is repeated.
PARTS = ("record", "weights", "predictions", "history")
TIMES = ("cost", "started", "finished")


def short_runs(root: Path, data: Path) -> list[RunSettings]:
    """Runs of a second: a few rows of pocket tasks, and a few images of one, in a directory."""
    for task in TASKS:
        for split in ("train", "validation", "test"):
            write_rows(pocket_files("glue", task) / f"{split}.parquet", data / task / f"{split}.parquet")
    write_images(pocket_files("vtab", IMAGES), data / IMAGES)
    texts = [[f"task=glue/{task}", f"method={method}", "train.hidden_dropout=0.1"] for task in TASKS for method in METHODS]
    images = [[f"task=vtab/{IMAGES}", f"method={method}"] for method in METHODS]
    return [
        compose_settings([*overrides, "data.source=hub", f"data.root={data}", f"results.root={root}", *SHORT])
        for overrides in (*texts, *images)
    ]


def write_rows(source: Path, target: Path) -> None:
    import pyarrow.parquet

    target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(source).slice(0, ROWS), target)


def write_images(source: Path, target: Path) -> None:
    """Write the layout of VTAB-1K's archive: files, and a list for each split."""
    import pyarrow.parquet

    (target / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for part, name in (("train", "train800"), ("train", "val200"), ("test", "test")):
        first = ROWS if name == "val200" else 0
        rows = pyarrow.parquet.read_table(source / f"{part}.parquet").slice(first, ROWS).to_pylist()
        for i, row in enumerate(rows):
            (target / "images" / f"{name}_{i}.png").write_bytes(row["image"]["bytes"])
        lines[name] = [f"images/{name}_{i}.png {row['label']}" for i, row in enumerate(rows)]
    for name, found in {**lines, "train800val200": lines["train800"] + lines["val200"]}.items():
        (target / f"{name}.txt").write_text("\n".join(found) + "\n")


@dataclass(frozen=True)
class Result:
    """The outcome of a run in its own process."""

    code: int  # exit status; negative: the signal that killed it
    output: str  # everything that it printed

    @property
    def is_killed(self) -> bool:
        return self.code == -signal.SIGKILL


def in_child(work: Callable[[], None], log: Path) -> Result:
    """Run the function in a fork of this process, which may die of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background of a shell
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 - ends with the process
            work()
            code = 0
        except QgoftError as error:
            os.write(2, f"qgoft: {error}\n".encode())
            code = 2
        except KeyboardInterrupt as stop:
            code = exit_code(stop)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return Result(os.waitstatus_to_exitcode(status), log.read_text())


def execute(settings: RunSettings) -> None:
    from qgoft.train.run import run

    run(settings)


def outcome(directory: Path) -> Any:
    """Return everything that a run writes, without its times."""
    record = read_record(directory / "record.json")
    for name in TIMES:
        del record[name]
    record["provenance"].pop("resumed", None)
    weights = {path.name: path.read_bytes() for path in sorted((directory / "adapter").glob("*.safetensors"))}
    predictions = gzip.decompress((directory / "predictions.jsonl.gz").read_bytes())
    return canonical_json(record), weights, predictions, (directory / "history.jsonl").read_text()


def clear(directory: Path) -> None:
    """Empty a directory of this script.

    Raises:
        QgoftError: it contains files and was not created by this script.
    """
    mark = directory / ".fault-injection"
    if directory.exists() and not mark.is_file() and (not directory.is_dir() or any(directory.iterdir())):
        raise QgoftError(f"--directory={directory} is not empty and was not created by this script; name a new or empty directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    mark.touch()
