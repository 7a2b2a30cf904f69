#!/usr/bin/env python3
"""Score a finished run again from its saved adapter, and compare with its record.

python scripts/rescore.py results/runs/<key> --merge
"""

import argparse
from pathlib import Path

from _ending import leave

# Points of a metric: rounding may turn single items whose logits are equal to seven digits.
TOLERANCE = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the weights first")
    parser.add_argument("--model-path", help="directory of the base model, where it did not come from the hub")
    parser.add_argument("--data-root", help="directory of the rows, where they did not come from the hub")
    parser.add_argument("--task-path", help="directory of the pictures of one task, where the run had it in task.path")
    arguments = parser.parse_args()
    from qgoft.train.quiet import quiet_libraries
    from qgoft.train.rescore import rescore

    quiet_libraries()
    record, metrics = rescore(
        arguments.run,
        merge=arguments.merge,
        model_path=arguments.model_path,
        data_root=arguments.data_root,
        task_path=arguments.task_path,
    )
    worst = 0.0
    for name, measured in metrics.items():
        then = record["metrics"][name]["value"]
        print(f"{name:<20} record {then:8.3f}   now {measured.value:8.3f}")
        worst = max(worst, abs(then - measured.value))
    print(f"{'merged' if arguments.merge else 'unmerged'}: largest difference {worst:.3f} points, allowed {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    leave(main)
