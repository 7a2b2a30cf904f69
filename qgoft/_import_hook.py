"""Run something when another module gets imported, without importing it ourselves."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    """Stands in front of the other finders for one module name, and steps aside once that module has been executed."""

    def __init__(self, module: str, action: Callable[[], Any]):
        self.module, self.action = module, action
        self.is_searching = False

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module or self.is_searching:
            return None
        # Looking a module up is not importing it (transformers looks for peft that way): stay until it is really executed.
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
    """Call `action` now if `module` is imported already, else right after its import."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(module, action))
