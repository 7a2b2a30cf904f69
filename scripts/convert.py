#!/usr/bin/env python3
"""Adapters from elsewhere, and runs for elsewhere.

python scripts/convert.py release ADAPTER TARGET   an adapter of the authors' first release, for peft.PeftModel.from_pretrained with this package
python scripts/convert.py export RUN TARGET        results/runs/<key> merged into a plain folder of transformers, which needs neither
"""

import argparse
import sys
from pathlib import Path

from _ending import leave

from qgoft.errors import QgoftError


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["release", "export"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", help="folder of the base model, where the run had its weights from a directory (export)")
    arguments = parser.parse_args(words)
    if not arguments.source.is_dir():
        raise QgoftError(f"there is no folder {arguments.source}; name that of an adapter (release) or of a finished run (export)")
    if arguments.target.exists() and not arguments.target.is_dir():
        raise QgoftError(f"{arguments.target} is a file; name a folder")
    if arguments.target.exists() and any(arguments.target.iterdir()):
        raise QgoftError(f"{arguments.target} is not empty; name a folder that is, or that is not there yet")
    if arguments.what == "release":
        from qgoft.tuners.goft.release import convert_folder

        print(f"{convert_folder(arguments.source, arguments.target)} in {arguments.target}")
    else:
        from qgoft.train.export import export_run
        from qgoft.train.quiet import quiet_libraries

        quiet_libraries()
        export_run(arguments.source, arguments.target, arguments.model)
        print(f"written to {arguments.target}")
    return 0


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1:]))
