#!/usr/bin/env python3
"""Trainable parameters, head excluded, by formula on the papers' shapes, beside the published counts: what `make counts` prints."""

import sys
from pathlib import Path

from qgoft.methods.base import REGISTRY, parse_variant
from qgoft.report.layout import Table
from qgoft.settings import method_label

# (outputs, inputs) of the adapted layers: six linear layers of twelve blocks; ViT-B/16's query and value.
ALL_LINEAR = 12 * [(768, 768), (768, 768), (768, 768), (768, 768), (3072, 768), (768, 3072)]
QUERY_VALUE = 24 * [(768, 768)]
ROWS = [
    # method, variant, layers, published, where, remark
    ("lora", "r2", ALL_LINEAR, "0.33M", "GOFT table 1", ""),
    ("lora", "r8", ALL_LINEAR, "1.33M", "PSOFT table 2", ""),
    ("pissa", "r8", ALL_LINEAR, "1.33M", "PSOFT table 2", ""),
    ("dora", "r8", ALL_LINEAR, "1.41M", "PSOFT table 2", ""),
    ("adalora", "r2", ALL_LINEAR, "0.32M", "GOFT table 1", "starts at r=3, as trained"),
    ("oft", "b4", ALL_LINEAR, "0.33M", "GOFT table 1", "printed: full blocks, 82,944 x b"),
    ("oft", "b8", ALL_LINEAR, "0.66M", "GOFT table 1", "printed: full blocks, 82,944 x b"),
    ("oft_v2", "b32", ALL_LINEAR, "1.29M", "PSOFT table 2", ""),
    ("boft", "b8m2", ALL_LINEAR, "1.41M", "PSOFT table 2", ""),
    ("psoft", "r46", ALL_LINEAR, "0.08M", "PSOFT table 2", ""),
    ("hra", "r8", ALL_LINEAR, "-", "", ""),
    ("goft", "goft", ALL_LINEAR, "0.08M", "GOFT table 1", ""),
    ("goft_star", "goft_star", ALL_LINEAR, "-", "", ""),
    ("qgoft", "qgoft", ALL_LINEAR, "0.33M", "GOFT table 1", ""),
    ("lora", "r8", QUERY_VALUE, "0.295M", "GOFT table 3", "query and value of ViT-B/16"),
    ("goft", "goft", QUERY_VALUE, "0.018M", "GOFT table 3", "query and value of ViT-B/16"),
    ("qgoft", "qgoft", QUERY_VALUE, "0.073M", "GOFT table 3", "query and value of ViT-B/16"),
]


def main() -> int:
    table = Table("counts", "trainable parameters, head excluded", ["method", "by formula", "published", "where", "remark"])
    for method, variant, shapes, published, where, remark in ROWS:
        entry = REGISTRY[method]
        assert entry.count is not None
        table.rows.append(
            [method_label(method, variant), f"{entry.count(shapes, parse_variant(entry, variant)):,}", published, where, remark]
        )
    print(table.terminal())
    table.write(Path(__file__).resolve().parents[1] / "results" / "tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
