"""The report as one self-contained page: sortable and filterable tables in which every measured cell opens its runs."""

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgoft.config.keys import affects_results
from qgoft.config.settings import method_label
from qgoft.records import Record, hub_commit, read_curve
from qgoft.report.table import Table

HERE = Path(__file__).parent
# Points of a curve on the page.
POINTS = 24
# Settings of which a record states only that they are directories.
DIRECTORIES = (("data", "root"), ("model", "path"), ("task", "path"))
NAMELESS = ' aria-label="row"'  # sort key of the first column, which has no title
# Settings that are locations.
LEFT_OUT = ("results", "wandb", "model.target_sets", "task.columns", "task.rows", "task.sources", "seed")


@dataclass
class Section:
    """A section of the page: an item under a protocol, the audit, the machine."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)  # svg
    text: str = ""


def build_page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    records: Sequence[Record],
    directories: Mapping[str, Path],
    models: Mapping[str, str],
) -> str:
    """Build the page. It loads nothing from outside, and text from data and judges is escaped.

    Args:
        directories: key of a record -> its directory, with its curve.
        models: name of a model in records -> name of its config file, for the commands.
    """
    data, numbers = _data(records, directories, models)
    links = "".join(f'<a href="#{_id(s.name)}">{html.escape(s.title)}</a>' for s in sections)
    body = "".join(_section(section, numbers) for section in sections)
    # In a script element only the sequence that would end it, or start a comment, must be escaped.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{html.escape(title)}</title><style>{(HERE / "page.css").read_text()}</style></head>
<body><header><h1>{html.escape(title)}</h1><button type="button" id="theme" aria-label="light or dark">light / dark</button></header>
<p>{html.escape(lead)}</p><nav aria-label="contents">{links}</nav><main>{body}</main>
<dialog aria-labelledby="opened"><h2 id="opened">runs</h2><div class="runs"></div><p><button type="button">close</button></p></dialog>
<script type="application/json" id="data">{text}</script><script>{(HERE / "page.js").read_text()}</script></body></html>
"""


def _id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _section(section: Section, numbers: Mapping[str, int]) -> str:
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    tables = "".join(_table(table, numbers, section.name) for table in section.tables)
    figures = "".join(_figure(path) for path in section.figures)
    figures = f'<div class="figures">{figures}</div>' if figures else ""
    return f'<section id="{_id(section.name)}"><h2>{html.escape(section.title)}</h2>{text}{tables}{figures}</section>'


def _table(table: Table, numbers: Mapping[str, int], section: str) -> str:
    name = _id(f"table-{section}-{table.name}")  # sections of two protocols show the same printed figures
    head = "".join(
        f'<th scope="col"><button type="button"{"" if column else NAMELESS}>{html.escape(column) or "&nbsp;"}</button></th>'
        for column in table.columns
    )
    rows = []
    for line, row in enumerate(table.rows):
        kinds = [kind for kind, holds in (("sub", row[0].startswith("  ")), ("rule", line in table.rules_before)) if holds]
        cells = "".join(_cell(table, line, place, text, numbers) for place, text in enumerate(row))
        rows.append(f'<tr class="{" ".join(kinds)}">{cells}</tr>' if kinds else f"<tr>{cells}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    tools = (
        f'<div class="tools"><label>rows with <input class="filter" data-table="{name}" placeholder="goft, lora"></label></div>'
        if len(table.rows) > 4
        else ""
    )
    caption = html.escape(table.title)
    body = f'<table id="{name}"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'{tools}<div class="scroll">{body}</div>' + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _cell(table: Table, line: int, place: int, text: str, numbers: Mapping[str, int]) -> str:
    mark = table.highlights.get((line, place), "")
    kind = f' class="{mark}"' if mark else ' class="words"' if len(text) > 40 else ""
    runs = [str(numbers[key]) for key in table.sources.get((line, place), []) if key in numbers]
    shown = html.escape(text.strip())
    if runs:
        label = html.escape(f"{table.rows[line][0].strip()}, {table.columns[place]}: {text}", quote=True)
        shown = f'<button type="button" class="cell" data-runs="{" ".join(runs)}" aria-label="{label}">{shown}</button>'
    return f"<td{kind}>{shown}</td>"


def _figure(path: Path) -> str:
    svg = path.read_text()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Several figures on one page: make the element ids that matplotlib repeats unique.
    svg = re.sub(r' id="([a-zA-Z0-9_]+_\d+|patch_\d+)"', "", svg)
    name = path.stem.replace("-", " ")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)
    return f"<figure>{svg}<figcaption>{html.escape(name)}</figcaption></figure>"


class _Shared:
    """Values that many runs share, written once; runs hold indices."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        return self.places.setdefault(json.dumps(value), len(self.places))

    def curve(self, points: Sequence[tuple[int, float]]) -> int | None:
        """Return [index of the steps, values]."""
        return self.place([self.place([step for step, _ in points]), [value for _, value in points]]) if points else None

    @property
    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.places]


def _data(records: Sequence[Record], directories: Mapping[str, Path], models: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the data of the page's script. Numbers for `loss`, `scores`, `origin`, `facts`, `own` and `command` of a run are indices into
    `shared`.
    """
    bases: dict[str, dict[str, Any]] = {}
    shared = _Shared()
    runs, numbers = [], {}
    for record in records:
        base_name = f"{record['protocol']}/{record['suite']}"
        settings = _flat(record["settings"])
        base = bases.setdefault(base_name, settings)
        own = {name: value for name, value in settings.items() if base.get(name) != value}
        own |= {name: None for name in base if name not in settings}
        runs.append(
            {
                "key": record["key"],
                "task": f"{record['suite']}/{record['task']}",
                "label": method_label(record["method"], record["variant"]),
                "seed": record["seed"],
                "status": record["status"],
                "reason": record["reason"],
                "primary": record["primary"],
                "value": record["metrics"].get(record["primary"], {}).get("value"),
                "metrics": {name: _metric(metric) for name, metric in record["metrics"].items()},
                "facts": [[shared.place(name), value] for name, value in _facts(record).items()],
                "loss": shared.curve(_thin(read_curve(directories.get(record["key"]), "loss"))),
                "scores": shared.curve(_thin(read_curve(directories.get(record["key"]), "score"))),
                "settings": base_name,
                "own": [shared.place(pair) for pair in own.items()],
                "origin": shared.place(_origin(record)),
                "command": [shared.place(word) for word in rerun_words(record, models)],
            }
        )
        numbers[record["key"]] = len(runs) - 1
    return {"runs": runs, "settings": bases, "shared": shared.values}, numbers


def rerun_command(record: Record, models: Mapping[str, str]) -> str:
    """Return the command line of `rerun_words`."""
    return " ".join(rerun_words(record, models))


def rerun_words(record: Record, models: Mapping[str, str]) -> list[str]:
    """Return the arguments of the command that repeats the run, quoted for a shell: every setting that affects results. DIRECTORY stands for a
    directory of rows or weights.
    """
    words = [f"protocol={record['protocol']}", f"task={record['suite']}/{record['task']}", f"method={record['method']}"]
    words += [f"method.variant={record['variant']}", f"seed={record['seed']}"]
    if record["model"] in models:
        words.append(f"model={models[record['model']]}")
    settings = record["settings"]
    words += [f"data.source={settings['data']['source']}"] if "data" in settings else []
    # Pin the commits of rows and weights from the hub.
    words += [f"{name}.revision={commit}" for name in ("data", "model") if (commit := hub_commit(record, name))]
    words += [f"{name}.{place}=DIRECTORY" for name, place in DIRECTORIES if settings.get(name, {}).get(place)]
    for group in ("train", "optim", "judge"):
        names = (name for name in settings.get(group, {}) if affects_results(f"{group}.{name}"))
        words += [f"{group}.{name}={_word(settings[group][name])}" for name in names]
    words += [f"method.{name}={_word(settings['method'][name])}" for name in ("penalty", "targets")]
    words += [f"++model.dtype={settings['model']['dtype']}"] if "dtype" in settings["model"] else []
    # Column names belong to the task.
    options = {name: value for name, value in settings.get("task", {}).get("options", {}).items() if name != "train_columns"}
    words += [f"++task.options.{name}={_word(value)}" for name, value in options.items()]
    # As in `settings_in_key`: sampled answers depend on the batch size.
    words += [f"train.eval_batch_size={settings['train']['eval_batch_size']}"] if options.get("temperature") else []
    words += [f"++method.options.{name}={_word(value)}" for name, value in settings["method"].get("options", {}).items()]
    words += [f"{name}={settings[name]}" for name in ("eval_scheme", "selection") if name in settings]
    processes = record["provenance"]["hardware"].get("processes", 1)
    start = ["python"] if processes == 1 else ["torchrun", f"--nproc_per_node={processes}"]
    return [*start, "scripts/train.py", *map(shlex.quote, words)]


def _word(value: Any) -> str:
    """Return a value in Hydra's syntax."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_word(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./@+-]*", value):
        return "'" + value.replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _metric(metric: dict[str, Any]) -> str:
    value, error = metric["value"], metric["standard_error"]
    return (
        "undefined" if value is None else f"{value:.2f}" + ("" if error is None else f" ±{error:.2f} (over items)") + f", n = {metric['n']}"
    )


def _facts(record: Record) -> dict[str, Any]:
    cost, orthogonality = record["cost"], record["orthogonality"]
    peak, error = cost["peak_memory_bytes"], orthogonality["max_error"]
    facts = {
        "selection": record["selection"],
        "trainable parameters": record["params"]["trainable"],
        "seconds of training": None if cost["seconds"] is None else round(cost["seconds"], 1),
        "steps": cost["steps"],
        "peak memory": None if peak is None else f"{peak / 1e9:.2f} GB",
        "max |R^T R - I|": None if error is None else f"{error:.1e}",
        "started": record["started"],
    }
    return {name: value for name, value in facts.items() if value is not None}


def _origin(record: Record) -> dict[str, Any]:
    provenance = record["provenance"]
    hardware, data, model = provenance["hardware"], provenance["data"], provenance["model"]
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    return {
        "commit": f"{provenance['commit']}{' (dirty)' if provenance['dirty'] else ''}",
        "device": f"{hardware['device']}, {hardware['processor']}, {hardware['threads']} threads, {hardware['processes']} processes",
        "data": f"{data['source']}, revision {data['revision']}, fingerprint {data['fingerprint'][:16]}, rows {json.dumps(data['rows'])}",
        "subset": "yes" if data["subset"] else None,
        "model": f"{model['source']}, revision {model['revision']}, sha256 {model['sha256'][:16]}"
        + (f", with tokenizer and configuration {model['files'][:16]}" if "files" in model else ""),
        "packages": packages,
    }


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return dotted names and values, without locations."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        full = f"{where}{name}"
        if full in LEFT_OUT:
            continue
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{full}.")
        elif value is not None and value not in ({}, []):
            found[full] = value if isinstance(value, int | float | str) else json.dumps(value)
    return found


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `POINTS` points of a curve, including the last."""
    if len(points) > POINTS:
        every = len(points) / POINTS
        points = [*(points[int(i * every)] for i in range(POINTS - 1)), points[-1]]
    return [(step, float(f"{value:.3g}")) for step, value in points]
