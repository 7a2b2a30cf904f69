"""Commands of scripts/ in forked processes: isolated like new ones, without the seconds of their imports.

Not for sweeps with several workers: joblib's pool does not end in a process that was forked.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["qgoft.commands.sweep", "qgoft.train.run"])


def run_script(
    name: str,
    *words: str,
    cwd: Path,
    prepare: Callable[[], None] | None = None,
    timeout: float = 300,
) -> CompletedProcess[str]:
    """Run scripts/<name>.py with one thread and return its exit code and output.

    Args:
        prepare: called in the new process before the command; a function of a module.

    Raises:
        TimeoutExpired: the command did not end in time, and was killed.
    """
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = _CONTEXT.Process(target=_run, args=(name, words, cwd, prepare, out, err))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise TimeoutExpired(words, timeout, err.read_bytes())
        return CompletedProcess([name, *words], process.exitcode or 0, out.read_text(), err.read_text())


def _run(name: str, words: tuple[str, ...], cwd: Path, prepare: Callable[[], None] | None, out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = [f"scripts/{name}.py", *words]
    import torch

    from qgoft.cli import run_command

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    run_command(name)
