"""Print the orthogonality error of each method during training: a table and a figure of finished runs.

Usage:
    python -m qgoft orthogonality                                    your runs (results/runs), GLUE, protocol pocket
    python -m qgoft orthogonality --records measured --suite vtab
"""

import argparse
from pathlib import Path

from qgoft.cli import Parser
from qgoft.config.locations import COMMAND, RESULTS
from qgoft.errors import QgoftError
from qgoft.records import find_records
from qgoft.report.charts import traces_chart
from qgoft.report.figures import Figure
from qgoft.report.orthogonality import build_trace_table, read_traces
from qgoft.report.table import terminal_width
from qgoft.report.table_files import write_table


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="runs", choices=["runs", "measured"])
    parser.add_argument("--suite", default="glue")
    parser.add_argument("--protocol", default="pocket")
    parser.add_argument("--root", type=Path, default=RESULTS, help="results.root of the runs")
    arguments = parser.parse_args(argv)
    traces = read_traces(find_records(arguments.root / arguments.records), arguments.protocol, arguments.suite)
    if not traces:
        raise QgoftError(
            f"no run of {arguments.suite} under protocol {arguments.protocol} in {arguments.root / arguments.records} has an orthogonality "
            f"trace; first run a method that rotates its input, such as qgoft: `{COMMAND} glue`"
        )
    table = build_trace_table(traces, arguments.protocol, arguments.suite)
    print(table.terminal(terminal_width()))
    write_table(table, arguments.root / "tables")
    spec = traces_chart(traces)
    if spec is not None:
        print("   ".join(str(path) for path in Figure("orthogonality", spec, table.title).write(arguments.root / "figures")))
    return 0
