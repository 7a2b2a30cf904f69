"""Compile the native kernels with the package. Without a C compiler it is installed without them, and they are compiled at first use, if a
compiler is there by then (qgoft/ops/givens/native).
"""

import runpy
import sys

from setuptools import Extension, setup

NATIVE = "qgoft/ops/givens/native"
build = runpy.run_path(f"{NATIVE}/build.py")
library = Extension(
    "qgoft.ops.givens.native._library",
    [f"{NATIVE}/givens.c"],
    depends=[f"{NATIVE}/rows.inc"],
    define_macros=[("GIVENS_SOURCE", f'"{build["source_hash"]()}"')],
    extra_compile_args=list(build["COMPILE_FLAGS"]),
    extra_link_args=list(build["LINK_FLAGS"]),
    optional=True,
)
setup(ext_modules=[library] if sys.platform == "linux" else [])
