"""Lease of a run: the right of one process to execute it."""

import json
import os
import shutil
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

# Seconds between two heartbeats, and after how many without one a lease expires.
HEARTBEAT_INTERVAL, LEASE_DURATION = 15.0, 120.0
LEASE_GLOB = "lease.*.json"
ATTEMPT_GLOB, OWNER = "attempt-*", "owner"
# Logs of wandb and TensorBoard are written outside the workspace; no score comes from them.
NOT_ADOPTED = ("record.json", "wandb", "tensorboard")


class LeaseHeld(Exception):
    """Another process executes this run."""


class LeaseLost(Exception):
    """The lease of this process expired, and another process has acquired the run."""


class Lease:
    """Lease of a run's directory, as a context manager. It needs a file system that creates files exclusively, which includes NFS.

    A lease is a file `lease.<n>.json` that its owner rewrites with a counter every `heartbeat_interval` seconds. A process that sees a
    lease unchanged for `lease_duration` seconds of its own monotonic clock (so clocks need not agree) acquires the run by creating n + 1. A
    dead owner on the same machine is detected immediately. If two processes create n + 1, the file system lets one succeed.

    An owner that was suspended past the expiry is fenced: it writes to `workspace`, a directory named by its own token, which the new owner
    renames, so every later write, rename or deletion fails. `publish` moves the files into the run's directory by one atomic rename each,
    the record last.

    Args:
        directory: directory of the run; created if missing.
        acquire_timeout: seconds on entry to watch the heartbeat of an owner on another machine; 0: do not wait.

    Raises:
        LeaseHeld: on entry, while another process holds the lease.
    """

    # (path, content) of a lease file -> time when this process first read that content, on this process's clock. Shared by all leases of the process.
    _seen: dict[Path, tuple[str, float]] = {}  # noqa: RUF012 - shared on purpose

    def __init__(
        self,
        directory: Path,
        *,
        heartbeat_interval: float = HEARTBEAT_INTERVAL,
        lease_duration: float = LEASE_DURATION,
        acquire_timeout: float = 0.0,
    ):
        self.directory, self.heartbeat_interval, self.lease_duration, self.acquire_timeout = (
            directory,
            heartbeat_interval,
            lease_duration,
            acquire_timeout,
        )
        self.token = uuid.uuid4().hex
        self.path: Path | None = None
        self.heartbeat_count = 0
        self.is_lost = False
        self.workspace = directory
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def owner(self) -> str | None:
        """Return the owner, `process 1 on host`, or None if the lease is free or expired."""
        files = self._files()
        if not files:
            return None
        text = read_text(files[-1])
        if text is None or self._is_expired(files[-1], text):
            return None
        content = parse(text)
        return f"process {content.get('pid', '?')} on {content.get('host', '?')}"

    def seconds_since_heartbeat(self) -> float:
        """Return the seconds since the last heartbeat by the clocks of this machine and the file system; 0 without a lease."""
        with suppress(OSError, IndexError):
            return time.time() - self._files()[-1].stat().st_mtime
        return 0.0

    def __enter__(self) -> "Lease":
        began, first = time.monotonic(), None
        while True:
            try:
                return self._acquire()
            except LeaseHeld:
                files = self._files()
                text = read_text(files[-1]) if files else None
                if text is not None and (_is_local(parse(text)) or text != (first or text)):
                    raise
                if time.monotonic() - began >= self.acquire_timeout:
                    raise
                first = first or text
            time.sleep(min(1.0, self.heartbeat_interval))

    def _acquire(self) -> "Lease":
        self.directory.mkdir(parents=True, exist_ok=True)
        files = self._files()
        before = files[-1] if files else None
        text = None if before is None else read_text(before)
        if before is not None and text is not None and not self._is_expired(before, text):
            raise LeaseHeld(self.owner() or "another process")
        number = 0 if before is None else _number(before) + 1
        lease_path = self.directory / f"lease.{number}.json"
        try:
            with open(lease_path, "x") as file:
                file.write(self._content())
        except FileExistsError:
            raise LeaseHeld("another process that just started") from None
        except OSError:  # on a full disk the file is empty, and would look like the lease of a process on another machine
            lease_path.unlink(missing_ok=True)
            raise
        # The expired lease may have been removed and acquired again in the meantime: then both raise LeaseHeld and retry later. Leases
        # older than the last belong to processes that were killed while acquiring.
        others = [path for path in self._files() if path != lease_path and (before is None or _number(path) >= _number(before))]
        if others != ([before] if before is not None else []) or (before is not None and read_text(before) != text):
            lease_path.unlink(missing_ok=True)
            raise LeaseHeld("another process that just started")
        self.path = lease_path
        for old in self._files():
            if _number(old) < number:
                old.unlink(missing_ok=True)
        try:
            self.workspace = self._claim_workspace()
        except OSError:
            lease_path.unlink(missing_ok=True)
            raise
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _claim_workspace(self) -> Path:
        """Rename the directory of the previous attempt with its checkpoints, or create a new one."""
        workspace = self.directory / f"attempt-{self.token}"
        # Without the file OWNER it was recreated by a process that had lost its lease.
        earlier = [path for path in self.directory.glob(ATTEMPT_GLOB) if (path / OWNER).is_file()]
        if earlier:
            os.rename(max(earlier, key=lambda path: (path / OWNER).stat().st_mtime_ns), workspace)
        workspace.mkdir(exist_ok=True)
        (workspace / OWNER).touch()
        return workspace

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):  # a directory with files is kept, since the next attempt resumes from it
            if self.path is not None and [path.name for path in self.workspace.iterdir()] == [OWNER]:
                shutil.rmtree(self.workspace)
        if self.path is not None and not self.is_lost and parse(read_text(self.path) or "").get("token") == self.token:
            self.path.unlink(missing_ok=True)
        self.path = None

    @property
    def _is_fenced(self) -> bool:
        return not (self.workspace / OWNER).is_file()

    def assert_held(self) -> None:
        """Assert that this process still holds the lease. Call it before each write that others read.

        Raises:
            LeaseLost: another process holds the run now.
        """
        if self.path is None:
            return
        if self.is_lost or self._is_fenced or self._files()[-1:] != [self.path]:
            raise self._lost()

    def _lost(self) -> LeaseLost:
        self.is_lost = True
        return LeaseLost(f"{self.directory.name[:12]}: another process acquired this run after the lease of this one expired")

    def adopt(self) -> None:
        """Move what earlier attempts published, except a record, into the workspace: checkpoints, answers and curves to resume from.

        Call it only if the run is not done.

        Raises:
            LeaseLost: another process holds the run now.
        """
        self.assert_held()
        for path in self.directory.iterdir():
            if path.match("lease.*") or path.match(ATTEMPT_GLOB) or path.name in NOT_ADOPTED:
                continue
            target = self.workspace / path.name
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            self._rename(path, target)

    def publish(self, *, discard: tuple[str, ...] = (), last: str = "record.json") -> None:
        """Move the files of the workspace into the run's directory, `last` at the end. Files named in `discard` are deleted instead.

        Raises:
            LeaseLost: another process holds the run now; its files are not touched.
        """
        self.assert_held()
        try:
            paths = sorted(self.workspace.iterdir(), key=lambda path: (path.name == last, path.name))
        except FileNotFoundError:
            raise self._lost() from None
        for path in paths:
            if path.name not in (OWNER, *discard):
                self._rename(path, self.directory / path.name)
        for name in discard:  # last: a kill before leaves them to resume from
            shutil.rmtree(self.workspace / name, ignore_errors=True)

    def _rename(self, source: Path, target: Path) -> None:
        try:
            os.replace(source, target)
        except FileNotFoundError:
            raise self._lost() from None

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_interval) and self.heartbeat():
            pass

    def heartbeat(self) -> bool:
        """Rewrite the lease. Return False if it is lost."""
        # The run itself reports a full or missing disk; heartbeats continue after a temporary error.
        with suppress(OSError):
            if self.path is None or self._is_fenced or self._files()[-1:] != [self.path]:
                self.is_lost = True
                return False
            self.heartbeat_count += 1
            temporary = self.path.with_suffix(f".{self.token}.part")
            try:
                temporary.write_text(self._content())
                os.replace(temporary, self.path)
            except OSError:
                temporary.unlink(missing_ok=True)
        return True

    def _content(self) -> str:
        return json.dumps({"token": self.token, **this_machine(), "pid": os.getpid(), "beats": self.heartbeat_count}) + "\n"

    def _files(self) -> list[Path]:
        found = [path for path in self.directory.glob(LEASE_GLOB) if path.name.split(".")[1].isdigit() and path.name.count(".") == 2]
        return sorted(found, key=_number)

    def _is_expired(self, path: Path, text: str) -> bool:
        content = parse(text)
        if _is_local(content) and not _is_alive(content["pid"]):
            return True
        known = self._seen.get(path)
        if known is None or known[0] != text:
            self._seen[path] = (text, time.monotonic())
            return False
        return time.monotonic() - known[1] > self.lease_duration


def _number(path: Path) -> int:
    return int(path.name.split(".")[1])


def read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def this_machine() -> dict[str, str]:
    """Return the scope of process numbers: containers may share the host name."""
    marks = []
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):  # no /proc on this system
            marks.append(read())
    return {"host": socket.gethostname(), "space": " ".join(marks)}


def _is_local(content: dict[str, Any]) -> bool:
    """Return True if the process of a lease runs on this machine."""
    return {name: content.get(name) for name in ("host", "space")} == this_machine() and isinstance(content.get("pid"), int)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Return True for a process that was killed but not yet collected by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
