"""Model card of a run's adapter: its numbers, what they were measured on, and the command that repeats the run."""

from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData

from qgoft.records import Record
from qgoft.records.rerun import rerun_command
from qgoft.report.names import display_name

LOAD = """```python
import qgoft  # registers the adapter types of this package
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "{repository}")
```
"""


def model_card(record: Record, models: Mapping[str, str], repository: str) -> str:
    """Return the card as Markdown with the metadata of the hub.

    Args:
        models: name of a model in records -> name of its config file, for the command.
        repository: owner/name on the hub.
    """
    provenance, settings = record["provenance"], record["settings"]
    name = display_name(record["method"], record["variant"])
    task = f"{record['suite']}/{record['task']}"
    split = settings.get("eval_scheme", "test")
    results = [
        EvalResult(
            task_type="text-generation" if record["model"].endswith("llama") else "other",
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_value=found["value"],
        )
        for metric, found in record["metrics"].items()
        if found["value"] is not None
    ]
    data = ModelCardData(
        library_name="peft",
        base_model=settings["model"]["hub"],
        tags=["qgoft", record["method"]],
        model_name=f"{name} on {task}",
        eval_results=results or None,
    )
    rows = [
        f"| {metric} | {found['value']:.2f}{_spread(found['standard_error'])} | {found['n']:,} |"
        for metric, found in record["metrics"].items()
        if found["value"] is not None
    ]
    commit = provenance["commit"] or "unknown"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {name} on {task}",
        "",
        f"Adapter of one training run (seed {record['seed']}, protocol {record['protocol']}) on {record['model']}.",
        "",
        "| metric | value (± standard error over items) | items |",
        "| --- | ---: | ---: |",
        *rows,
        "",
        f"- Scored on: {provenance['data']['source']}, scheme `{split}`, {'a subset of the rows' if provenance['data']['subset'] else 'all rows'}; "
        f"checkpoint selection: `{record['selection']}`.",
        f"- Trainable parameters without the head: {record['params']['trainable']:,}.",
        *([] if (error := record["orthogonality"]["max_error"]) is None else [f"- Orthogonality error, max |R^T R - I|: {error:.1e}."]),
        f"- Base weights: SHA-256 `{provenance['model']['sha256']}`. Rows: fingerprint `{provenance['data']['fingerprint']}`.",
        f"- Code: qgoft, commit `{commit}`; {', '.join(f'{package} {version}' for package, version in provenance['packages'].items())}.",
        f"- Run: `{record['key']}`.",
        "",
        "## Use",
        "",
        LOAD.format(repository=repository),
        "## Command that repeats the run",
        "",
        "```sh",
        rerun_command(record, models),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _spread(error: float | None) -> str:
    return "" if error is None else f" ±{error:.2f}"
