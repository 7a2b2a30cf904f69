"""The shipped backbones, in the format of save_pretrained. `python -m qgoft build-pocket` rebuilds them."""

from pathlib import Path

from qgoft.errors import QgoftError

DIRECTORY = Path(__file__).parent


def weights_directory(name: str) -> Path:
    """Return the directory of a shipped backbone; the random control has the architecture and tokenizer of the pretrained one.

    Raises:
        QgoftError: there is no backbone of this name.
    """
    directory = DIRECTORY / name.removesuffix("-random")
    if not (directory / "config.json").is_file():
        known = sorted(path.parent.name for path in DIRECTORY.glob("*/config.json"))
        raise QgoftError(f"no shipped backbone {name!r}; allowed are {', '.join(known)}; change MODEL")
    return directory
