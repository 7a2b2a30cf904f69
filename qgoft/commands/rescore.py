"""Score a finished run again from its saved adapter, and compare with its record.

Usage:
    python scripts/rescore.py results/runs/<key> --merge
"""

import argparse
from pathlib import Path

from qgoft.cli import Parser


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name directories of a run's rows and weights."""
    parser.add_argument("--model-path", help="directory of the base model, if it is not from the hub")
    parser.add_argument("--data-root", help="directory of the rows, if they are not from the hub")
    parser.add_argument("--task-path", help="directory of the images of one task, if the run set task.path")


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the weights first")
    add_source_arguments(parser)
    parser.add_argument("--ask-judge", action="store_true", help="request all ratings again from a judge behind an endpoint")
    arguments = parser.parse_args(argv)
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.rescore import rescore, tolerance

    quiet_libraries()
    record, metrics = rescore(
        arguments.run,
        merge=arguments.merge,
        model_path=arguments.model_path,
        data_root=arguments.data_root,
        task_path=arguments.task_path,
        ask_judge=arguments.ask_judge,
    )
    is_same = True
    for name, measured in metrics.items():
        then, allowed = record["metrics"][name]["value"], tolerance(name)
        apart = abs(then - measured.value)
        is_same &= apart <= allowed
        print(f"{name:<20} record {then:8.3f}   now {measured.value:8.3f}   difference {apart:.4f}, tolerance {allowed:g}")
    print(f"{'merged' if arguments.merge else 'unmerged'}: {'the same' if is_same else 'NOT the same'}")
    return 0 if is_same else 1
