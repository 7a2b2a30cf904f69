"""Time and memory of the operator, of layers, of a block and of whole models, all methods in one run: `make bench`.

    python scripts/bench.py                       on a CPU, some hours on two cores
    python scripts/bench.py --parts product,model --only deberta --repeats 3
    python scripts/bench.py --set paper           the shapes of the papers' tables, for a GPU
    python scripts/bench.py --return-memory       with the default allocator: memory is returned after a step and faulted in again
    python scripts/bench.py --show FILE           tables and figures of a record
    python scripts/bench.py --device-check        on a GPU, at most eight minutes: the kernels' tests, then the product, two layers and
                                                  DeBERTaV3-base

The operator's tests run first, so that a wrong operator is not timed. The record is written to results/bench/, with its tables and figures.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from qgoft import records
from qgoft.bench.contenders import CONTENDERS, REFERENCE, Contender, find_contender
from qgoft.bench.measure import join_rounds, measure_group, measure_in_turns, measure_products, plan_groups, serve
from qgoft.bench.shapes import Shape, cpu_shapes, device_shapes, paper_shapes
from qgoft.cli import Parser
from qgoft.config.locations import REPOSITORY, RESULTS
from qgoft.errors import QgoftError, check_choice, format_exception
from qgoft.machine import available_cores
from qgoft.ops.givens.dispatch import choose_backend, triton_available
from qgoft.report.bench import all_tables
from qgoft.report.charts import bench_figures
from qgoft.report.cost import KEPT, SYSTEM
from qgoft.report.table import terminal_width
from qgoft.report.table_files import write_table
from qgoft.train.quiet import quiet_libraries

KILLED = "the process was killed, as happens if memory runs out; select with --only or --contenders"
ROUNDS = 2
PARTS = ["product", "layer", "block", "model", "pocket"]
WIDTHS = [64, 128, 256, 512, 768, 1024, 2048, 3072, 4096, 8192, 16384]
SETS = {"cpu": cpu_shapes, "paper": paper_shapes, "device": device_shapes}
DEVICE_CONTENDERS = ["frozen", "goft", "qgoft"]
DEVICE_LIMIT = 480.0  # seconds, after which no further shape is started
DEVICE_TESTS = ["tests/ops/test_triton.py", "tests/ops/test_givens.py", "-k", "not compile"]


def operator_is_right(tests: list[str]) -> bool:
    if REPOSITORY is None:  # the native kernels check themselves when they are loaded
        print("operator's tests: not part of the installed package; run the benchmark in a checkout to test first")
        return True
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *tests]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print("operator's tests:", done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr)
    return done.returncode == 0


def contenders_for(shape: Shape, wanted: list[str] | None) -> list[Contender]:
    """Return the requested methods and always the reference; by default those of the shape's table and those for its part."""
    if wanted is not None:
        return [find_contender(name) for name in dict.fromkeys([REFERENCE, *wanted])]
    return [contender for contender in CONTENDERS if contender.name in shape.printed or _is_default(contender, shape)]


def _is_default(contender: Contender, shape: Shape) -> bool:
    if shape.part == "model":
        return contender.is_quick if shape.quick else contender.in_models
    return not contender.is_printed


def show(record: dict, directory: Path) -> None:
    for table in all_tables(record):
        print(table.terminal(terminal_width()))
        write_table(table, directory)
    hardware = record["hardware"]
    print(f"{hardware['device']}, {hardware['processor']}, {hardware['threads']} threads; allocator: {record['allocator']}")
    print(f"GPU kernels (Triton): {record['triton']}")
    for path in (path for figure in bench_figures(record) for path in figure.write(directory)):
        print(f"figure: {os.path.relpath(path)}")


def report_to_terminal(line: str) -> None:
    """Report every step on a terminal; in a log, one line per measurement."""
    if sys.stderr.isatty():
        print(f"\033[K{line}", end="\r", file=sys.stderr, flush=True)
        return
    subject = line.partition(":")[0]
    if subject not in _announced:
        _announced.add(subject)
        print(f"timing {subject}", file=sys.stderr, flush=True)


_announced: set[str] = set()


# glibc's settings, read when a process starts: large arrays come from the heap, and the heap never shrinks. With the defaults, between none
# and a third of a step is spent in page faults, depending on the position of a method's last block in the heap (docs/LOG.md), which adds
# noise between methods.
KEEP = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000", "MALLOC_TOP_PAD_": "67108864"}


def restart_keeping_memory() -> None:
    """Restart this process with the allocator settings of the embedded runs."""
    if any(os.environ.get(name) != value for name, value in KEEP.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP})


def keeps_memory(arguments: argparse.Namespace) -> bool:
    return platform.libc_ver()[0] == "glibc" and not arguments.return_memory


def triton_state(device: str) -> str:
    """Return the state of the GPU kernels for the record: without a GPU the tests only interpret them."""
    if device != "cuda":
        return "has not run on a device: this machine has no GPU"
    return "used" if triton_available() else "does not work on this device; matrix products were used"


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Time in a new process, which returns all its memory, so that a method cannot slow down the next one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def prepare_process(threads: int) -> None:
    quiet_libraries()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def time_group(shapes: str, shape_name: str, names: list[str], batch: int, repeats: int, threads: int, device: str) -> list[dict]:
    prepare_process(threads)
    shape = next(shape for shape in SETS[shapes]() if shape.name == shape_name)
    contenders = [find_contender(name) for name in names]
    return measure_group(shape, contenders, batch, repeats, device, report_to_terminal)


def serve_contender(
    channel: Connection, shapes: str, shape_name: str, name: str, batch: int, threads: int, device: str, counts_bytes: bool
) -> None:
    prepare_process(threads)
    shape = next(shape for shape in SETS[shapes]() if shape.name == shape_name)
    serve(channel, shape, find_contender(name), batch, device, counts_bytes=counts_bytes)


def time_in_rounds(shapes: str, shape_name: str, names: list[str], batch: int, repeats: int, threads: int, device: str) -> list[dict]:
    """Time whole models: the repeats are divided among new processes, since on a CPU a process may be 10% faster than another for its
    lifetime.
    """
    count = 1 if device == "cuda" else ROUNDS
    rounds = [repeats // count + (i < repeats % count) for i in range(count)]
    # The bytes are those of the first round.
    words = (shapes, shape_name, names, batch)
    return join_rounds([time_in_turns(*words, steps, threads, device, not number) for number, steps in enumerate(filter(None, rounds))])


def time_in_turns(
    shapes: str, shape_name: str, names: list[str], batch: int, repeats: int, threads: int, device: str, counts_bytes: bool
) -> list[dict]:
    """Time every method in a process of its own, one step after the other."""
    context, processes, channels = multiprocessing.get_context("spawn"), [], []
    try:
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve_contender, args=(theirs, shapes, shape_name, name, batch, threads, device, counts_bytes), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            channels.append(ours)
            ours.poll(None)  # its first steps: more threads than cores would take minutes
        return measure_in_turns(channels, [f"{shape_name}: {name}" for name in names], repeats, report_to_terminal)
    except (EOFError, ConnectionError) as error:
        raise BrokenProcessPool(KILLED) from error
    finally:
        for process in processes:
            process.kill()
            process.join()


def time_products(repeats: int, threads: int, device: str) -> list[dict]:
    prepare_process(threads)
    return measure_products(WIDTHS, 2048, repeats, device, report_to_terminal)


def run(arguments: argparse.Namespace, path: Path) -> dict:
    """Time everything requested. The record is written after each shape, so that a later failure loses nothing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    repeats, threads = arguments.repeats, arguments.threads
    torch.set_num_threads(threads)
    record: dict[str, Any] = {
        "kind": "bench",
        "set": arguments.set,
        "reference": REFERENCE,
        "dtype": "float32",
        "repeats": repeats,
        "rounds": {"model": min(ROUNDS, repeats)},
        "allocator": KEPT if keeps_memory(arguments) else SYSTEM,
        "triton": triton_state(device),
        "products": in_own_process(time_products, repeats, threads, device) if "product" in arguments.parts else [],
        "shapes": [],
        "failed": [],
        **records.code_provenance(REPOSITORY),
        "packages": records.package_versions(),
        "hardware": {
            **records.hardware(
                device=torch.cuda.get_device_name() if device == "cuda" else "cpu", threads=torch.get_num_threads(), processes=1
            ),
            "givens": choose_backend(torch.zeros(1, device=device)),
        },
    }
    write(record, path)
    for shape in SETS[arguments.set]():
        if shape.part not in arguments.parts or (arguments.only is not None and arguments.only.lower() not in shape.name.lower()):
            continue
        if arguments.set == "device" and time.monotonic() - started > DEVICE_LIMIT:
            reason = f"{DEVICE_LIMIT:.0f} seconds are over"
            record["failed"].append({"shape": shape.name, "batch": shape.batch, "contenders": [], "reason": reason})
            continue
        groups = []
        is_model = shape.part == "model"
        asked = contenders_for(shape, arguments.contenders)
        for contenders, batch in plan_groups(asked, shape.batch, apart=is_model, divided=arguments.set == "cpu"):
            names = [contender.name for contender in contenders]
            words = (arguments.set, shape.name, names, batch, repeats, threads, device)
            try:
                groups.append(time_in_rounds(*words) if is_model else in_own_process(time_group, *words))
            except (BrokenProcessPool, torch.OutOfMemoryError) as error:
                reason = KILLED if isinstance(error, BrokenProcessPool) else format_exception(error)
                record["failed"].append({"shape": shape.name, "batch": batch, "contenders": names, "reason": reason})
        # A part of the batch is comparable only with the whole batch.
        if groups and groups[0][0]["batch"] == shape.batch:
            record["shapes"].append({"shape": shape.name, "part": shape.part, "item": shape.item, "groups": groups})
        write(record, path)
    return record


def file_name(arguments: argparse.Namespace) -> str:
    """Return the file name of the record: a part of the benchmark does not overwrite the whole."""
    parts = [] if arguments.parts == PARTS else arguments.parts
    words = [arguments.set, *(["returned"] if arguments.return_memory else []), *parts, *([arguments.only] if arguments.only else [])]
    contenders = arguments.contenders or []
    words += contenders if len(contenders) < 4 else [f"{len(contenders)} contenders"]
    return "-".join(re.sub(r"[^a-z0-9]+", "_", word.lower()) for word in words)


def write(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_atomically(path, json.dumps(record, indent=1) + "\n")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="cpu", help="cpu, or the papers' shapes: paper")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--only", help="part of the name of a shape")
    parser.add_argument(
        "--contenders", type=lambda text: text.split(","), help=f"besides {REFERENCE}; default: all, but on models the quick ones"
    )
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=min(2, available_cores()))
    parser.add_argument(
        "--return-memory", action="store_true", help="let the C library return freed memory to the system, as it usually does"
    )
    parser.add_argument("--device-check", action="store_true", help="a short check of the kernels on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench")
    parser.add_argument("--show", type=Path, help="print a record instead of measuring")
    arguments = parser.parse_args(argv)
    if arguments.show:
        show(json.loads(arguments.show.read_text()), arguments.out)
        return 0
    check_choice("set of shapes", arguments.set, list(SETS), "set BENCH")
    for part in arguments.parts:
        check_choice("part", part, PARTS, "set --parts")
    for name in arguments.contenders or []:
        find_contender(name)
    if arguments.device_check:
        if not torch.cuda.is_available():
            raise QgoftError("--device-check needs a GPU, and this machine has none; `make bench` times the CPU")
        arguments.set, arguments.parts, arguments.contenders = "device", ["product", "layer", "model"], DEVICE_CONTENDERS
    if keeps_memory(arguments):
        restart_keeping_memory()
    if not operator_is_right(DEVICE_TESTS if arguments.device_check else ["tests/ops"]):
        print("qgoft: the operator fails its tests; nothing was timed", file=sys.stderr)
        return 1
    path = arguments.out / f"{file_name(arguments)}.json"
    record = run(arguments, path)
    show(record, arguments.out)
    print(f"record: {os.path.relpath(path)}")
    for line in record["failed"]:
        print(
            f"qgoft: not timed: {line['shape']}, batch {line['batch']} ({', '.join(line['contenders'])}): {line['reason']}", file=sys.stderr
        )
    return 1 if record["failed"] else 0
