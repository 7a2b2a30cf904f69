"""Keeps the libraries quiet, so that what a command prints is what it has to say."""

import logging
import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """No bars of the libraries, no load reports, none of their notices to their own developers."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
