"""Any tuner of peft that has no entry of its own, with the defaults of its configuration."""

import dataclasses
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from qgoft.errors import QgoftError, hint
from qgoft.methods.registry import Hparams, Method, MethodContext

# Letter of a variant -> meaning, and the fields of peft's configurations that have it.
LETTERS = {
    "r": ("rank", ("r", "rank")),
    "n": ("number of frequencies or vectors", ("n_frequency", "num_vectors")),
    "b": ("block size", ("block_size",)),
    "g": ("group size", ("group_size",)),
    "v": ("vector length", ("vector_length",)),
}
# Tuners that adapt layers but need more than the linear layers of a model and its rows.
UNUSABLE = {
    "ln_tuning": "it trains normalisation layers, and the suites name linear ones",
    "poly": "it needs the number of a task with every row, and a run has one task",
    "shadow": "its layers pass on pairs of tensors, which the attention of the backbones does not accept",
}
# Set by this package.
OWN_FIELDS = (
    "peft_type",
    "task_type",
    "inference_mode",
    "target_modules",
    "modules_to_save",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
)


def peft_method(name: str) -> Method:
    """Return the method of a tuner type. The number of its parameters is that of the built model.

    Raises:
        QgoftError: the tuner does not replace layers, such as prompt tuning, or needs what the suites do not have.
    """
    if name in UNUSABLE:
        raise QgoftError(f"method {name}: {UNUSABLE[name]}")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name.upper()]]
    fields = {field.name for field in dataclasses.fields(config)}
    if "target_modules" not in fields:
        raise QgoftError(
            f"method {name}: it adds inputs or whole modules instead of adapting layers, which no suite of this project supports"
        )
    letters = {letter: next((field for field in names if field in fields), None) for letter, (_, names) in LETTERS.items()}
    known = {letter: field for letter, field in letters.items() if field is not None}

    def make(hparams: Hparams, context: MethodContext) -> PeftConfig:
        unknown = sorted(set(context.options) - fields | set(context.options) & set(OWN_FIELDS))
        if unknown:
            allowed = sorted(fields - set(OWN_FIELDS))
            raise QgoftError(
                f"method.options.{unknown[0]}: method {name} has no such option{hint(unknown[0], allowed)}; allowed are {', '.join(allowed)}"
            )
        given: dict[str, Any] = {known[letter]: number for letter, number in hparams.items()}
        if "feedforward_modules" in fields:  # (IA)^3 scales inputs instead of outputs there
            given["feedforward_modules"] = []
        return config(**{**given, **context.options})

    return Method(name, {letter: LETTERS[letter][0] for letter in known}, config=make, are_hparams_optional=True)
