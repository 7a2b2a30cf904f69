"""Compile the native kernels with the package, and put the configuration files, their composed settings and published figures into a wheel.

Without a C compiler the package is installed without kernels, and they are compiled at first use, if a compiler is there by then
(qgoft/ops/givens/native).
"""

import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

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
# Path in the checkout -> its place in the package of a wheel (qgoft/config/locations.py).
DATA = {"configs": "_configs", "results/published": "_published", "results/measured/settings.json.gz": "_settings.json.gz"}


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in DATA.items():
                place = Path(self.build_lib, "qgoft", target)
                shutil.rmtree(place, ignore_errors=True)  # of an earlier build
                (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, place)


setup(cmdclass={"build_py": BuildWithData}, ext_modules=[library] if sys.platform == "linux" else [])
