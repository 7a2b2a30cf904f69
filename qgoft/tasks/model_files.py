"""Files of a model directory: the weights, and checksums of all files that transformers reads. Free of torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from qgoft.errors import QgoftError
from qgoft.records import file_sha256

TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
# Files that transformers reads besides the weights.
READ_BESIDE = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
)
# Names of weights in the order in which transformers searches them; an index lists its shards. Other files, such as the state of an
# optimiser or of the generator of RTD pretraining (microsoft/deberta-v3-*), are not weights.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# The same as download patterns; the first kind that matches a file is used.
WEIGHT_PATTERNS = (
    ("model.safetensors", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*-of-*.bin"),
)
# Files that transformers loads in addition to the weights if they exist.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def weight_files(directory: Path) -> list[Path]:
    """Return the files that transformers loads the weights from: one file, or an index and its shards.

    Raises:
        QgoftError: the directory has no weights, or the index names a shard that is missing or outside the directory.
    """
    first = next((path for name in WEIGHTS if (path := directory / name).is_file()), None)
    if first is None:
        raise QgoftError(f"{directory} has none of {', '.join(WEIGHTS)}; the download is incomplete or the directory is wrong")
    if first.suffix != ".json":
        return [first]
    try:
        names = sorted({str(name) for name in json.loads(first.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise QgoftError(f"{first} is not an index of shards ({type(error).__name__}: {error}); fetch the model again") from error
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise QgoftError(f"{first} names the shard {name}, which is not in its directory; complete the download")
    return [first, *(directory / name for name in names)]


def check_directory(directory: Path) -> None:
    """Reject a directory from which transformers would load more or other files than the checksummed weights.

    Raises:
        QgoftError: it holds an adapter, or its configuration names another file of weights.
    """
    for name in ADAPTERS:
        if (directory / name).exists():
            raise QgoftError(
                f"{directory / name}: transformers would load this adapter on top of the weights; move it out of the directory of the base model"
            )
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise QgoftError(f"{directory / 'config.json'} cannot be read ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise QgoftError(f"{directory / 'config.json'} is a {type(config).__name__}; expected a JSON object; fetch the model again")
    named = config.get("transformers_weights")
    if named is not None:
        raise QgoftError(
            f"{directory / 'config.json'}: transformers_weights={named!r} names other weights than {weight_files(directory)[0].name}; remove it, "
            "or rename the file"
        )


def weights_sha256(directory: Path) -> str:
    """Return the SHA-256 of the weights: of the one file, or of the list of checksums of the index and its shards.

    Raises:
        QgoftError: the directory has no weights.
    """
    sums = [file_sha256(path) for path in weight_files(directory)]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def tokenizer_sha256(directory: Path) -> str:
    """Return the SHA-256 of all files of a tokenizer in a model directory."""
    return list_sha256(directory, TOKENIZER_FILES)


def list_sha256(directory: Path, patterns: Sequence[str], *, among: Sequence[str] | None = None) -> str:
    """Return one SHA-256 of the files that match some patterns.

    Args:
        among: patterns that a file must match too: the hub's cache may hold files fetched by other programs.
    """
    found = sorted({path for pattern in patterns for path in directory.glob(pattern)})
    if among is not None:
        found = [path for path in found if any(path.match(pattern) for pattern in among)]
    return hashlib.sha256("".join(f"{file_sha256(path)} {path.name}\n" for path in found).encode()).hexdigest()
