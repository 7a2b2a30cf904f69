"""Settings of a retention measurement: those of the protocol (`retention` in configs/protocol) with overrides of the command line."""

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from qgoft.config.constraints import SIZE, STRICT, Float, Int, Name, Str, between
from qgoft.config.settings import one_line_error
from qgoft.config.suites import read_config
from qgoft.errors import QgoftError

PREFIX = "retention."


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
        text_tokens: tokens of that text, at most.
        positions: positions of probe inputs for the geometry of activations.
        weight_rows: rows of a weight for its angles and energy, at most.
    """

    probes: list[Name]
    steps: list[Annotated[Float, between(0, 1)]]
    tasks: list[Str] = field(default_factory=list)
    train_rows: Annotated[Int, SIZE] = 500
    test_rows: Annotated[Int, SIZE] = 500
    text: Str | dict[str, Any] | None = None
    text_tokens: Annotated[Int, SIZE] = 20_000
    positions: Annotated[Int, SIZE] = 2048
    weight_rows: Annotated[Int, SIZE] = 512


_ADAPTER = TypeAdapter(RetentionSettings)


def retention_settings(protocol: str, suite: str, overrides: Sequence[str] = ()) -> RetentionSettings:
    """Return the settings of a protocol for a suite.

    Args:
        overrides: `retention.steps=0,1`, `retention.probes=[language,bbh]` and so on.

    Raises:
        QgoftError: an unknown setting or an invalid value, no probe, or no step.
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
    if not data.get("steps"):
        raise QgoftError(f"{PREFIX}steps is empty; expected numbers from 0 (pretrained) to 1 (tuned), such as 0,0.5,1")
    try:
        settings = _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise QgoftError(one_line_error(error, RetentionSettings, PREFIX)) from None
    repeated = [name for name in ("probes", "steps", "tasks") if len(set(getattr(settings, name))) < len(getattr(settings, name))]
    if repeated:
        raise QgoftError(f"{PREFIX}{repeated[0]} names a value twice; name each once")
    return settings


def _value(override: str, text: str, *, is_list: bool) -> Any:
    """Parse the value of an override; a list may omit its brackets."""
    try:
        if is_list and not text.startswith("["):
            text = f"[{text}]"
        value = OmegaConf.from_dotlist([f"x={text}"]).x
    except OmegaConfBaseException as error:
        raise QgoftError(f"{override}: {' '.join(str(error).split())}") from error
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
