"""Where a number comes from: which code, which packages, which machine. No torch: what only torch knows is handed in."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("qgoft", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "numpy", "scipy", "scikit-learn")
CODE = ("qgoft", "configs", "scripts")
# Modules that cannot change the result of a run.
NO_NUMBERS = ("audit", "bench", "cli.py", "commands", "report", "sweep")


@functools.cache
def code_provenance(repository: Path) -> dict[str, Any]:
    """Of the code that this process has loaded, so read once: commit, and whether qgoft, configs or scripts differ from it; null where there is
    no git or no repository."""
    try:
        commit = _git(repository, "rev-parse", "HEAD").strip()
        changed = _git(repository, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed.strip())}


@functools.cache
def code_checksum() -> str:
    """Return the SHA-256 of the sources of this package that can change a number: all but the report and the benchmarks."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] in NO_NUMBERS:
            continue
        digest.update(f"{path.relative_to(package).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def code_origin() -> dict[str, str]:
    """Code and packages: what must be the same for the rest of a run to come out as its beginning would have."""
    return {"code": code_checksum(), **package_versions()}


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True).stdout


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(*, device: str, threads: int, processes: int) -> dict[str, Any]:
    """Processor, cores and memory of this machine, and the device and threads a run used."""
    return {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "processes": processes,
    }


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
