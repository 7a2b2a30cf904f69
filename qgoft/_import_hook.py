"""Run an action when another module is imported, without importing it here."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    """Meta path finder for one module name. It removes itself once that module has been executed."""

    def __init__(self, module: str, action: Callable[[], Any]):
        self.module, self.action = module, action
        self.is_searching = False

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module or self.is_searching:
            return None
        # Finding a module does not execute it (transformers tests for peft that way), so stay until it is executed.
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_act(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.action()

        spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def call_after_import(module: str, action: Callable[[], Any]) -> None:
    """Call `action` now if `module` is imported already, otherwise right after its import."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(module, action))
