"""Downloads from a real hub on the loopback interface. The stand-in without one: tests/tasks/glue/test_glue.py."""

import os
import re
import socket
import subprocess
import sys

import pytest

from qgoft import records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory, repository):
    directory = repository.parent / "shared" / "hub"
    if not directory.is_dir():
        pytest.skip("needs the loopback hub of the shared directory; tests/tasks/glue/test_glue.py runs the same code on a stand-in")
    root = tmp_path_factory.mktemp("hub")
    subprocess.run([sys.executable, str(directory / "build.py"), str(root)], check=True, capture_output=True, timeout=200)

    def serve(*options):
        process = subprocess.Popen(
            [sys.executable, "-u", str(directory / "serve.py"), str(root), "--port", "0", *options], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group(0)

    running = []
    yield serve
    for process in running:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()


def train(repository, address, home, *words):
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(repository / "scripts" / "train.py"),
        "protocol=goft_icml24",
        "method=qgoft",
        "task=glue/mrpc",
        "train.max_steps=2",
    ]
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=240, cwd=repository)


def test_hub_run_records_revisions(hub, tmp_path, repository):
    """The hub is busy at first."""
    done = train(repository, hub("--fail", "3"), tmp_path / "home", f"results.root={tmp_path}")
    assert "503 Service Unavailable" in done.stderr
    assert "retrying in 1 s" in done.stderr
    assert done.returncode in (0, 1), done.stderr  # two steps may leave constant predictions, for which accuracy is defined
    (record,) = records.read_records(tmp_path / "runs")
    assert record["status"] == "done"
    data, model = record["provenance"]["data"], record["provenance"]["model"]
    assert (data["source"], model["source"]) == ("nyu-mll/glue", "microsoft/deberta-v3-base")
    assert re.fullmatch("[0-9a-f]{40}", data["revision"])
    assert re.fullmatch("[0-9a-f]{40}", model["revision"])
    assert re.fullmatch("[0-9a-f]{64}", model["files"]), "a revision is no setting that counts: tokenizer and configuration are"
    assert data["subset"] is True
    assert data["rows"] == {"train": 3060, "validation": 408}
    again = train(repository, "http://127.0.0.1:9", tmp_path / "home", f"results.root={tmp_path / 'offline'}", "seed=1")
    assert "make fetch" in again.stderr or again.returncode == 0


def test_hub_gated_model(hub, tmp_path, repository):
    done = train(repository, hub("--gate", "microsoft/deberta-v3-base"), tmp_path / "home", f"results.root={tmp_path}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("qgoft:")]
    assert len(lines) == 1
    assert "is gated: accept its terms on http://127.0.0.1:" in lines[0]
    assert "/microsoft/deberta-v3-base, then log in" in lines[0]
    assert not list(tmp_path.rglob("record.json"))


def test_hub_missing_dataset(hub, tmp_path, repository):
    done = train(repository, hub(), tmp_path / "home", f"results.root={tmp_path}", "task.hub=nobody/nothing")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("state", ["gone", "silent"])
def test_hub_unresponsive(state, tmp_path, repository, monkeypatch):
    """Without the loopback hub: nothing listens, or a server accepts every connection and never answers."""
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if state == "silent":
            listener.listen(64)
        done = train(repository, f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "home", f"results.root={tmp_path}")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("qgoft:") and "once more" not in line]
    assert len(lines) == 1, done.stderr
    assert "is unreachable; run `make fetch`" in lines[0] or "run the same command again" in lines[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_hub_absent_while_planning(tmp_path, repository):
    """In a process that has loaded nothing else of the hub's client, whose modules are imported on first use."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "scripts/sweep.py", "table4", "--protocol", "small", "--seeds", "0", "--action", "status"]
    done = subprocess.run(
        [*command, f"results.root={tmp_path}"], env=environment, capture_output=True, text=True, timeout=240, cwd=repository
    )
    assert done.returncode == 2
    assert done.stderr.startswith("qgoft: left out squad/v1 with minilm-l6: dataset rajpurkar/squad at revision main is not in the cache")
    assert done.stderr.count("\n") == 1


def test_hub_broken_download(hub, tmp_path, repository):
    done = train(repository, hub("--truncate", "40"), tmp_path / "home", f"results.root={tmp_path}")
    assert done.returncode == 2
    assert "repeat the command to resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))
