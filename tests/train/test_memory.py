"""Freed memory is kept: a block of the size of a freed one faults no pages in."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import ctypes, resource, sys
from qgoft.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
library, size = ctypes.CDLL(None), ctypes.c_size_t(2**26)
library.malloc.restype = ctypes.c_void_p
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(library.malloc(size))
    library.memset(block, 1, size)
    library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("word", ["keep", "return"])
def test_freed_memory_is_kept(word):
    faults = int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, word], capture_output=True, text=True, check=True).stdout)
    # 64 MB are 16,384 pages, or 32 huge ones.
    assert faults < 8 if word == "keep" else faults >= 32
