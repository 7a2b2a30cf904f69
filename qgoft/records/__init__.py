"""Run records: schema, key, atomic writing and reading, and archives of many of them."""

from qgoft.records.find import RecordSet, find_records, read_records
from qgoft.records.jsonl import TaggedLines, read_curve, read_tagged
from qgoft.records.key import RESULTS_VERSION, base_model, canonical_json, compute_key, hub_commit
from qgoft.records.provenance import code_checksum, code_origin, code_provenance, hardware, package_versions
from qgoft.records.run_files import AnswerColumns, RunDirectory, RunFiles, curve_of, place_name
from qgoft.records.schema import PRIMARY_STATUSES, SCHEMA, Record, RecordError, validate
from qgoft.records.store import (
    adapter_checksums,
    atomic_file,
    file_checksums,
    file_sha256,
    read_record,
    write_atomically,
    write_record,
)

__all__ = [
    "PRIMARY_STATUSES",
    "RESULTS_VERSION",
    "SCHEMA",
    "AnswerColumns",
    "Record",
    "RecordError",
    "RecordSet",
    "RunDirectory",
    "RunFiles",
    "TaggedLines",
    "adapter_checksums",
    "atomic_file",
    "base_model",
    "canonical_json",
    "code_checksum",
    "code_origin",
    "code_provenance",
    "compute_key",
    "curve_of",
    "file_checksums",
    "file_sha256",
    "find_records",
    "hardware",
    "hub_commit",
    "package_versions",
    "place_name",
    "read_curve",
    "read_record",
    "read_records",
    "read_tagged",
    "validate",
    "write_atomically",
    "write_record",
]
