"""Run something when another module gets imported, without importing it ourselves."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    """Stands in front of the other finders for one module name, once, and steps aside as soon as it is asked for."""

    def __init__(self, module: str, action: Callable[[], Any]):
        self.module, self.action = module, action

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_act(module: ModuleType) -> None:
            execute(module)
            self.action()

        spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def call_after_import(module: str, action: Callable[[], Any]) -> None:
    """Call `action` now if `module` is imported already, else right after its import."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(module, action))
