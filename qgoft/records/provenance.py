"""Provenance: code, packages and machine of a run. Free of torch; its facts are passed in."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from qgoft.machine import processor_name

PACKAGES = ("qgoft", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "numpy", "scipy", "scikit-learn")
CODE = ("qgoft", "configs", "scripts")
# Modules that cannot affect the result of a run.
NO_NUMBERS = ("audit", "bench", "cli.py", "commands", "report", "sweep")


@functools.cache
def code_provenance(repository: Path | None) -> dict[str, Any]:
    """Return the commit of the loaded code, and whether qgoft, configs or scripts differ from it; null without git or a repository. Cached,
    because the tree may change later.
    """
    if repository is None:
        return {"commit": None, "dirty": None}
    try:
        commit = _git(repository, "rev-parse", "HEAD").strip()
        changed = _git(repository, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed.strip())}


@functools.cache
def code_checksum() -> str:
    """Return the SHA-256 of the sources of this package that can affect results."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] in NO_NUMBERS:
            continue
        digest.update(f"{path.relative_to(package).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def code_origin() -> dict[str, str]:
    """Return code and packages, which must be unchanged for a resumed run to be bit-exact."""
    return {"code": code_checksum(), **package_versions()}


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True).stdout


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(*, device: str, threads: int, processes: int) -> dict[str, Any]:
    """Return processor, cores and memory of this machine, with the device and threads of a run."""
    return {
        "device": device,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "processes": processes,
    }
