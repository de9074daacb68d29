"""Libraries that are imported when they are first used: networkx and the sparse part of scipy take as long to import as
all of this package."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Lazily(ModuleType):
    """`Lazily("networkx")` stands for that module, and imports it with the first attribute that is asked for. A type
    checker is told of the module itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
