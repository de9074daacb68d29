"""Compiled code: each function its own, never eager code in its place.

Dynamo compiles at most 8 versions of one code object and then runs it *eagerly*, with a line in the log. Pruned
networks of one class share their forward, so from the ninth on a runtime would be measured that nobody asked for. Here
every function gets a code object of its own, and where the forward breaks into several graphs, versions that other
calls of `torch.compile` do not count (`isolate_recompiles`, where torch has it). Should a limit be hit all the same, or
nothing be compiled, that is an error; and while times are taken nothing is compiled. `torch._dynamo.reset` is not
called: it would throw away the caller's compiled code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..errors import LatencyError

BACKEND: str | Callable[..., Any] = "inductor"

WARM_UP = 3
"""Calls before times are taken: the first compiles, the second may compile again with sizes left open."""

_ISOLATED: dict[str, Any]
_ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}

_numbers = count()


def isolated() -> dict[str, Any]:
    """For `torch.compile`: versions of a function that others of the same code do not use up, where torch has that."""
    return dict(_ISOLATED)


class Counted:
    """Compiles graphs and counts them. Dynamo keeps it with the compiled code, where no garbage collector looks, so it
    knows nothing of the function."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.graphs = 0
        self._options = {"config_patches": dict(options)} if options else {}

    def __call__(self, graph: torch.fx.GraphModule, example: list[Any]) -> Any:
        self.graphs += 1
        return backend_of(BACKEND)(graph, example, **self._options)


def backend_of(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """The backend of torch.compile that has this name."""
    from torch._dynamo import lookup_backend

    return lookup_backend(name) if isinstance(name, str) else name


def mode_options(mode: str) -> dict[str, Any]:
    """What a mode of torch.compile means to inductor; "" is its default.

    Raises:
        LatencyError: there is no such mode.
    """
    if not mode:
        return {}
    import torch._inductor as inductor

    try:
        return dict(inductor.list_mode_options(mode))
    except (RuntimeError, KeyError) as error:
        raise LatencyError(f"torch.compile has no mode {mode!r}: {_first_line(error)}") from error


class Compiled:
    """A function, compiled; `warm_up` with the arguments that it is going to be timed with."""

    def __init__(
        self,
        function: Callable[..., Any],
        dynamic: bool | None = None,
        options: Mapping[str, Any] | None = None,
        fullgraph: bool = False,
    ) -> None:
        """`options` are inductor's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        # Equal code objects count as one.
        run.__code__ = run.__code__.replace(co_name=f"halp_fx_{next(_numbers)}")
        self._backend = Counted(options or {})
        self._frozen = bool(options and options.get("freezing"))
        self.function = torch.compile(run, backend=self._backend, dynamic=dynamic, fullgraph=fullgraph, **isolated())

    def warm_up(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these arguments, whatever stance the caller has set.

        Raises:
            LatencyError: Dynamo would run eager code instead.
        """
        warm_up(lambda: self.function(*args, **kwargs), self._frozen)
        if self._backend.graphs == 0:
            raise LatencyError(
                "torch.compile compiled nothing of this network, so it would be measured eagerly: is compilation "
                "switched off (TORCHDYNAMO_DISABLE, torch.compiler.disable)?"
            )


def warm_up(call: Callable[[], Any], frozen: bool = False) -> None:
    """Compile what a call runs, whatever stance the caller has set.

    Args:
        frozen: with weights as constants. As an option alone that has no effect: Dynamo has to know while it traces.

    Raises:
        LatencyError: Dynamo would run eager code instead, or the compiler does not work here.
    """
    import torch._dynamo as dynamo  # Takes a second; torch itself imports it when it first compiles.

    with (
        torch.compiler.set_stance("default"),
        dynamo.config.patch(fail_on_recompile_limit_hit=True),
        _freezing() if frozen else nullcontext(),
    ):
        try:
            for _ in range(WARM_UP):
                call()
        except dynamo.exc.FailOnRecompileLimitHit as error:
            raise LatencyError(
                "torch.compile has as many versions of a function of this network as it makes and would run eager "
                "code instead, which is not measured: raise torch._dynamo.config.recompile_limit (and "
                f"accumulated_recompile_limit), or measure in a new process ({_first_line(error)})"
            ) from error
        except dynamo.exc.Unsupported as error:
            raise LatencyError(
                f"the forward breaks into several graphs: {_first_line(error)}. fullgraph=False compiles each of them; "
                "or compile the part that is one graph (a detector's backbone)"
            ) from error
        except dynamo.exc.BackendCompilerFailed as error:
            raise LatencyError(
                "torch.compile does not work here, and nothing was measured: inductor needs a C++ compiler (g++ or "
                "clang++; the variable CXX may name it), and Triton on a GPU; runtime='eager' needs neither "
                f"({_first_line(error.inner_exception)})"
            ) from error


def packaged(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Any]:
    """A program compiled ahead of time into a package (a `.pt2` file), and loaded from there.

    Raises:
        LatencyError: the compiler does not work here.
    """
    import torch._inductor as inductor

    try:
        run: Callable[..., Any] = inductor.aoti_load_package(
            inductor.aoti_compile_and_package(program, package_path=str(path))
        )
    except Exception as error:
        raise LatencyError(
            f"AOTInductor cannot compile this network here; it needs a C++ compiler, as inductor does "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    return run


def _freezing() -> AbstractContextManager[None]:
    import torch._inductor.config as config

    patched: AbstractContextManager[None] = config.patch(freezing=True)
    return patched


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """To be held while times are taken of what is warm. Holds for the whole process.

    Raises:
        LatencyError: something was about to be compiled.
    """
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            yield
    except RuntimeError as error:
        if "fail_on_recompile" not in str(error):
            raise
        raise LatencyError(
            f"torch.compile wanted to compile again while times were taken, after {WARM_UP} calls with these very "
            f"inputs: the forward depends on more than its inputs ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
