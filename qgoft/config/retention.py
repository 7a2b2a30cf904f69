"""Settings of a retention measurement: those of the protocol (`retention` in configs/protocol) with overrides of the command line."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qgoft.config.constraints import SIZE, STRICT, Bool, Float, Int, Name, Str, between
from qgoft.config.settings import one_line_error
from qgoft.config.suites import config_names, read_config, suite_info
from qgoft.errors import QgoftError, check_choice, hint

PREFIX = "retention."
# Probe -> kinds of suites for which it is defined. Other names are tasks of lm-eval, for decoders.
PROBES = {"transfer": ("encoder", "vision"), "similarity": ("encoder",), "language": ("decoder",), "knowledge": ("decoder",)}
# Text of the embedded corpus.
POCKET = "pocket"


@dataclass(frozen=True, config=STRICT)
class RetentionSettings:
    """Settings of the measurement of a finished run.

    Attributes:
        probes: transfer, similarity, language, knowledge, or tasks of lm-eval by their names.
        steps: parts t of the change at which probes and target are evaluated, 0 for the pretrained backbone, 1 for the tuned one.
        tasks: tasks of the probe transfer, as suite/task; that of the run is left out.
        train_rows: training rows of a transfer task that are used, at most.
        test_rows: reported rows of each of its test sets, at most.
        text: text of the probe language: a file, or `pocket`, or {hub, files, column}.
        text_sha256: SHA-256 of that file.
        text_tokens: tokens of that text, at most.
        positions: positions of probe inputs for the geometry of activations.
        weight_rows: rows of a weight for its angles and energy, at most.
        ask_judge: allow requests to a judge behind an endpoint at every t.
    """

    probes: list[Name]
    steps: list[Annotated[Float, between(0, 1)]]
    tasks: list[Str] = field(default_factory=list)
    train_rows: Annotated[Int, SIZE] = 500
    test_rows: Annotated[Int, SIZE] = 500
    text: Str | dict[str, Any] | None = None
    text_sha256: Str | None = None
    text_tokens: Annotated[Int, SIZE] = 20_000
    positions: Annotated[Int, SIZE] = 2048
    weight_rows: Annotated[Int, SIZE] = 512
    ask_judge: Bool = False


_ADAPTER = TypeAdapter(RetentionSettings)


def retention_settings(protocol: str, suite: str, overrides: Sequence[str] = ()) -> RetentionSettings:
    """Return the settings of a protocol for a suite.

    Args:
        overrides: `retention.steps=0,1`, `retention.probes=[language,bbh]` and so on.

    Raises:
        QgoftError: an unknown setting or an invalid value, a probe that the suite cannot have, or a text that cannot be read.
    """
    stated = read_config(f"protocol/{protocol}").get("retention", {})
    data = {**{name: value for name, value in stated.items() if name != "suites"}, **stated.get("suites", {}).get(suite, {})}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not name.startswith(PREFIX) or not equals:
            raise QgoftError(f"{override}: expected {PREFIX}<setting>=<value>, such as {PREFIX}steps=0,0.5,1")
        data[name.removeprefix(PREFIX)] = _value(override, text, is_list=name.removeprefix(PREFIX) in ("probes", "steps", "tasks"))
    if not data.get("probes"):
        raise QgoftError(f"protocol {protocol} has no retention probes for suite {suite}; name them with {PREFIX}probes=[...]")
    if isinstance(data.get("text"), str) and data["text"] != POCKET:
        data["text_sha256"] = _text_sha256(data["text"])
    try:
        settings = _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise QgoftError(one_line_error(error, RetentionSettings, PREFIX)) from None
    repeated = [name for name in ("probes", "steps", "tasks") if len(set(getattr(settings, name))) < len(getattr(settings, name))]
    if repeated:
        raise QgoftError(f"{PREFIX}{repeated[0]} repeats a value; remove it")
    if 1 not in settings.steps:
        raise QgoftError(
            f"{PREFIX}steps={settings.steps}: 1 is missing, the tuned backbone, whose score must be that of the record; add it"
        )
    _check_probes(settings, suite)
    return settings


def _check_probes(settings: RetentionSettings, suite: str) -> None:
    """Check that the probes are defined for a suite, and that the tasks exist.

    Raises:
        QgoftError: names the probe or the task.
    """
    kind = suite_info(suite).kind
    for name in settings.probes:
        if kind not in PROBES.get(name, ("decoder",)):
            known = [probe for probe, kinds in PROBES.items() if kind in kinds]
            raise QgoftError(
                f"{PREFIX}probes: {name} is not a probe of suite {suite} ({kind}); allowed are {', '.join(known)}{hint(name, PROBES)}"
            )
        if name not in PROBES and importlib.util.find_spec("lm_eval") is None:
            raise QgoftError(
                f"{PREFIX}probes: {name} is not a probe of this package, and lm-eval, which may have it, is not installed; pip install -e '.[mmlu]'"
                + hint(name, PROBES)
            )
    for task in settings.tasks:
        check_choice("task", task, config_names("task"), f"change {PREFIX}tasks")


def _text_sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise QgoftError(f"{PREFIX}text={path} cannot be read ({error.strerror}); name a text file in UTF-8") from error


def _value(override: str, text: str, *, is_list: bool) -> Any:
    """Parse the value of an override; a list may omit its brackets."""
    try:
        if is_list and not text.startswith("["):
            text = f"[{text}]"
        value = OmegaConf.from_dotlist([f"x={text}"]).x
    except OmegaConfBaseException as error:
        raise QgoftError(f"{override}: {' '.join(str(error).split())}") from error
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
