"""Upload the adapter of a finished run to the hub, with a model card that has its numbers and the command that repeats it.

    python -m qgoft push results/runs/<key> owner/name [--private]

The token is that of `hf auth login` or HF_TOKEN. The adapter of a method that changes the weights themselves (full, bitfit, linear) is not a peft
adapter and cannot be uploaded; `scripts/convert.py export` writes a plain checkpoint.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from qgoft.cli import Parser
from qgoft.config.compose import model_files
from qgoft.errors import QgoftError
from qgoft.records import read_record
from qgoft.report.model_card import model_card
from qgoft.tasks.sources import redacted_message

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--private", action="store_true")
    arguments = parser.parse_args(argv)
    directory, adapter = arguments.run, arguments.run / "adapter"
    if not (directory / "record.json").is_file():
        raise QgoftError(f"{directory}: no record.json; expected the directory of a finished run, such as results/runs/<key>")
    record = read_record(directory / "record.json")
    missing = [name for name in ADAPTER if not (adapter / name).is_file()]
    if missing or record["status"] != "done":
        reason = f"adapter/{missing[0]} is missing" if missing else f"its status is {record['status']}"
        raise QgoftError(f"{directory}: no peft adapter to upload: {reason}; repeat the run of a peft method")
    from huggingface_hub import HfApi

    from qgoft.train.adapter_files import check_adapter

    check_adapter(record, directory)

    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(adapter, place, dirs_exist_ok=True)
        Path(place, "README.md").write_text(model_card(record, model_files(), arguments.repository))
        shutil.copyfile(directory / "record.json", Path(place, "record.json"))
        api = HfApi()
        try:
            api.create_repo(arguments.repository, private=arguments.private, exist_ok=True)
            done = api.upload_folder(repo_id=arguments.repository, folder_path=place, commit_message=f"Run {record['key'][:16]}")
        except Exception as error:  # those of the HTTP client have no base class of their own
            raise QgoftError(
                f"upload to {arguments.repository} failed ({redacted_message(error)}); log in with `hf auth login` or set HF_TOKEN, and check "
                "the name"
            ) from error
    print(f"uploaded: {done.commit_url}")
    return 0
