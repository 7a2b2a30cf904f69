"""Eight writers and a reader on one results directory: no record is lost, corrupt or duplicated."""

import copy
import hashlib
import multiprocessing

from qgoft import records
from qgoft.lease import Lease, LeaseHeld, LeaseLost
from tests.records.test_records import RECORD

WRITERS, KEYS, TURNS = 8, 12, 4


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def write(root, writer, barrier):
    """Write as runs do: under a lease, other files first, and the record last. All keys, each writer starting at another."""
    barrier.wait()
    for turn in range(TURNS):
        for number in range(KEYS):
            name = key((number + 5 * writer) % KEYS)
            try:
                with Lease(root / name) as lease:
                    record = copy.deepcopy(RECORD)
                    record.update(key=name, seed=writer, finished=f"2026-01-01T00:{turn:02}:{writer:02}+00:00")
                    record["settings"]["seed"] = writer
                    (root / name / "history.jsonl").write_text(f'{{"step": 1, "total": 1, "loss": {writer}.{turn}}}\n')
                    record["files"] = records.file_checksums(root / name)
                    lease.assert_held()
                    records.write_record(root / name, record)
            except (LeaseHeld, LeaseLost):
                continue


def test_concurrent_writers_and_reader(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(WRITERS + 1)
    writers = [context.Process(target=write, args=(tmp_path, number, barrier)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    barrier.wait()
    seen, reads = set(), 0
    while any(writer.is_alive() for writer in writers):
        found = records.find_records(tmp_path)
        keys = [record["key"] for record in found.records]
        assert len(keys) == len(set(keys))
        # A curve may be a moment ahead of its record, which is reported; anything else would be a corrupt file.
        assert all("history.jsonl: it differs from its checksum" in problem for problem in found.problems), found.problems
        assert seen <= set(keys), "what was there once stays"
        seen |= set(keys)
        reads += 1
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    found = records.find_records(tmp_path)
    assert not found.problems
    assert {record["key"] for record in found.records} == {key(number) for number in range(KEYS)}
    assert reads > 3
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"record.json", "history.jsonl"}
