"""Style and output of figures: legible in a column of a two-column paper, colour-blind safe, byte-identical for equal input."""

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito (2008), without their yellow, which is not visible in thin lines on white. Markers distinguish them in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"
COLUMN = 3.4  # inches, the width of a column
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
# Metadata that would differ between two files of one figure.
_TIMELESS: dict[str, dict[str, Any] | None] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None, "ModDate": None},
    ".png": {"Software": None},
}


def style_of(number: int) -> dict[str, Any]:
    """Return colour and marker of the n-th line or point of a figure."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]}


@contextmanager
def paper_style() -> Iterator[None]:
    """Set fonts and lines for a column of a paper while a figure is drawn."""
    with matplotlib.rc_context(STYLE):
        yield


def save_figure(figure: Any, stem: Path, *, is_tight: bool = True) -> list[Path]:
    """Write stem.svg, stem.png and stem.pdf deterministically, and close the figure. Within `background_writing` another process writes them.

    Args:
        is_tight: crop to the drawn content, which takes as long as drawing it; False if the layout of the figure fits.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    if _pool is None:
        _write(figure, stem, is_tight)
    else:
        _pending.append(_pool.submit(_write_pickled, pickle.dumps(figure), stem, is_tight))
    plt.close(figure)
    return [stem.with_suffix(suffix) for suffix in _TIMELESS]


_pool: ProcessPoolExecutor | None = None
_pending: list[Future[None]] = []


@contextmanager
def background_writing(jobs: int) -> Iterator[None]:
    """Write figures in other processes while this one goes on. All files exist at the end of the block.

    Args:
        jobs: processes in total; with 1, figures are written at once.
    """
    global _pool
    if jobs == 1:
        yield
        return
    with ProcessPoolExecutor(jobs - 1, multiprocessing.get_context("spawn")) as pool:
        _pool = pool
        try:
            yield
            for written in _pending:
                written.result()
        finally:
            _pool = None
            _pending.clear()


def _write(figure: Any, stem: Path, is_tight: bool) -> None:
    # Computed once: "tight" would draw every file twice.
    box = figure.get_tightbbox().padded(0.03) if is_tight else None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": stem.name}):
        for suffix, metadata in _TIMELESS.items():
            figure.savefig(stem.with_suffix(suffix), dpi=200, bbox_inches=box, metadata=metadata)


def _write_pickled(figure: bytes, stem: Path, is_tight: bool) -> None:
    _write(pickle.loads(figure), stem, is_tight)  # from this program's own process
