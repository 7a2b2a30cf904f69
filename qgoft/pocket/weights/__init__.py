"""The shipped backbones, in the format of save_pretrained. `python -m qgoft build-pocket` rebuilds them."""

from pathlib import Path

from qgoft.errors import QgoftError

FOLDER = Path(__file__).parent


def weights_folder(name: str) -> Path:
    """Return the directory of a shipped backbone; the random control has the architecture and tokenizer of the pretrained one.

    Raises:
        QgoftError: there is no backbone of this name.
    """
    folder = FOLDER / name.removesuffix("-random")
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
        raise QgoftError(f"no shipped backbone {name!r}; allowed are {', '.join(known)}; change MODEL")
    return folder
