"""Suppression of library output."""

import logging
import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """Disable progress bars, load reports and developer warnings of the libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
