"""A checkout of halp_fx on `sys.path` -> the package of PyPI that is called as its folder kernels/ is, or nothing.

Python finds a folder with an `__init__.py` before an installed package that stands later on `sys.path`. Imported under
its bare name, the folder therefore puts in its place what would have been found without it. If there is nothing, it
becomes what a folder without an `__init__.py` is: a namespace without a file, and here without contents, too. An
error would be wrong, because `transformers` imports whatever has a spec (5.24, `_is_package_available`), and takes a
package for absent that has no file and no version.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def step_aside(name: str) -> None:
    """Replace `sys.modules[name]`, which is being imported, by the module that the rest of `sys.path` has.

    Raises:
        Exception: whatever the other module raises when it is imported.
    """
    for own in [n for n in sys.modules if n.startswith(f"{name}.")]:
        del sys.modules[own]
    spec = _elsewhere(name) or ModuleSpec(name, None, is_package=True)
    module = module_from_spec(spec)
    sys.modules[name] = module  # The import statement returns what stands here in the end.
    if spec.loader is not None:
        spec.loader.exec_module(module)


def _elsewhere(name: str) -> ModuleSpec | None:
    """Where the name is found without this folder."""
    path = [entry for entry in sys.path if (Path(entry or ".") / name).resolve() != _FOLDER]
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path if finder is PathFinder else None)
        if spec is not None and not (spec.origin and Path(spec.origin).resolve().parent == _FOLDER):
            return spec
    return None
