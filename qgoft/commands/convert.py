"""Convert released adapters to this package, and runs of this package to plain checkpoints.

Usage:
    python scripts/convert.py release ADAPTER TARGET --release first|second
        convert an adapter of the authors' code for peft.PeftModel.from_pretrained
    python scripts/convert.py export RUN TARGET
        merge results/runs/<key> into a plain transformers checkpoint
"""

import argparse
from pathlib import Path

from qgoft.cli import Parser
from qgoft.errors import QgoftError


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["release", "export"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", help="directory of the base model, if the run read its weights from a directory (export)")
    parser.add_argument("--release", help="release of the authors' code that trained the adapter: first or second (release)")
    arguments = parser.parse_args(argv)
    if not arguments.source.is_dir():
        raise QgoftError(f"{arguments.source}: not a directory; expected that of an adapter (release) or of a finished run (export)")
    if arguments.target.exists() and not arguments.target.is_dir():
        raise QgoftError(f"{arguments.target} is a file; name a directory")
    if arguments.target.exists() and any(arguments.target.iterdir()):
        raise QgoftError(f"{arguments.target} is not empty; name an empty or new directory")
    if arguments.what == "release":
        from qgoft.tuners.goft.convert import convert_directory

        print(f"{convert_directory(arguments.source, arguments.target, arguments.release)} in {arguments.target}")
    else:
        from qgoft.train.export import export_run
        from qgoft.train.quiet import quiet_libraries

        quiet_libraries()
        export_run(arguments.source, arguments.target, arguments.model)
        print(f"written to {arguments.target}")
    return 0
