"""What every command shares: its exit codes, and words instead of tracebacks."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

import typer

from ..errors import HalpError, InfeasibleError
from ..fitting import folded, terminal_width

FAILED, USAGE, OUT_OF_REACH, MISSED, INTERRUPTED = 1, 2, 3, 4, 130
"""What a command exits with, beside 0."""

_SAID = {
    0: "done",
    FAILED: "an error, which the last line names",
    USAGE: "the command line is not understood",
    OUT_OF_REACH: "no network meets the budget: nothing is written",
    MISSED: "a network was written, but it misses its budget",
    INTERRUPTED: "interrupted (Ctrl-C): the last lines say what was saved",
}

logger = logging.getLogger("halp_fx")

Command = Callable[..., None]

_saved: list[str] = []
_again: list[str] = []
_made: list[Path] = []
_results: list[TextIO] = []


def made(folder: Path) -> None:
    """A folder that is taken away again if the command fails before there is anything in it."""
    _made.append(folder)


def saved(path: Path | str) -> None:
    """Say, if the command is interrupted, that this was written."""
    _saved.append(str(path))


def results() -> TextIO:
    """Where the object of `--json` goes: standard output, which then takes nothing else."""
    return _results[-1] if _results else sys.stdout


@contextmanager
def _results_apart() -> Iterator[None]:
    """What is printed meanwhile, also by a model's own file, goes to standard error."""
    _results.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


_TIMED = "layers that were timed are kept in the latency table: run the same command again"
_COUNTED = "--state DIR would keep the search"


def goes_on(words: str) -> None:
    """Say, if the command is interrupted, how to go on."""
    _again.append(words)


def search_goes_on(cost: str, state: Path | None = None) -> None:
    """The same of a search: by what it budgets, and where it is kept."""
    kept = f"the search is kept in {state}: run the same command again"
    goes_on(kept if state is not None else _TIMED if cost == "latency" else _COUNTED)


def guarded(*codes: int, examples: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """A command whose errors are one line, and whose help has examples and exit codes.

    Args:
        codes: exit codes of its own, beside 0, `FAILED`, `USAGE` and `INTERRUPTED`.
        examples: command lines, without the name of the program.
    """

    def of(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            _saved.clear()
            _again.clear()
            _made.clear()
            # A shell leaves "--out=~/small" as it is, and would make a folder named "~".
            kwargs = {k: v.expanduser() if isinstance(v, Path) else v for k, v in kwargs.items()}
            try:
                with _results_apart() if kwargs.get("as_json") else nullcontext():
                    command(*args, **kwargs)
            except InfeasibleError as error:
                _stop(f"error: {as_options(str(error))}", OUT_OF_REACH)
            except HalpError as error:
                _stop(f"error: {as_options(str(error))}", FAILED)
            except KeyboardInterrupt:
                _stop(_interrupted(), INTERRUPTED)
            except BrokenPipeError:
                raise  # Whoever reads us has read enough: Python and the shell know what to do.
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                _stop(f"error: {where}{error.strerror or error}", FAILED)
            except MemoryError:
                _stop("error: not enough memory for this; a smaller --input (its batch) takes less", FAILED)

        run.__doc__ = _help(command.__doc__ or "", examples, codes)
        return run

    return of


_OPTIONS = {
    r"\(latency=halp_fx\.latency\.MeasuredLatency\(runtime='(\w+)'\)\)": r"(--runtime \1)",
    r"\b(branches|compensate|heal)=True\b": r"--\1",
    r"\bsteps=(\d+)": r"--steps \1",
    r"\(steps\)": "(--steps)",
    r"\bruntime='(\w+)'": r"--runtime \1",
    r"\btorch\.set_num_threads\((\d+)\)": r"--threads \1",
    r"limits=\{name: \(2, 1\.0\)\} or min_keep": "--min-keep",
    r"solver='exact' looks further": "in Python, solver='exact' looks further",
    r"or pass importance='magnitude'": "or leave --data out",
    r"pass loss=lambda model, batch: …( \(a scalar[^)]*\) instead of loss_fn)?": (
        "call halp_fx.prune in Python, with loss="
    ),
    r"\bloss_fn\b": "--loss",
    r"\bmin_keep=(\S+) must be .*": r"--min-keep \1 must be a share above 0, at most 1",
    r"\bmin_keep\b": "--min-keep",
    r"^ignore: ": "--ignore: ",
    r"\bround_to\b": "--round-to",
    r"\bin ignore\b": "of --ignore",
    r"\(latency=\)": "(--cost)",
    r"\bthreads=(\S+) must be": r"--threads \1 must be",
    r"A graph that another tool captured [^:]*: make the plan on what it is applied to": (
        "Name the model that was pruned, with the same --set and --input"
    ),
    r"summary\(\) and the page say which": "report.html says which",
    r"pass data (for widths that fit the network)": r"pass --data \1",
    r"\beffort='(\w+)'": r"--effort \1",
    r"pass data, batches of inputs": "pass --data",
    r"Pass the dense network that was pruned, or a function that makes it": (
        "Name the model that was pruned, with the same --set"
    ),
    r"Pass\s+example_inputs with which model\(\*example_inputs\) runs[^.\n]*": (
        "Say what it takes with --input, the batch first, such as 1x3x224x224"
    ),
}
"""How the library calls what commands have options for."""


def as_options(words: str) -> str:
    """What the library says, in the words of a command line; wherever its lines end."""
    for pattern, option in _OPTIONS.items():
        words = re.sub(pattern.replace(" ", r"\s+"), option, words)
    return words


def _stop(words: str, code: int) -> None:
    for folder in reversed(_made):
        with suppress(OSError):  # Something is in it.
            folder.rmdir()
    if logger.isEnabledFor(logging.INFO):  # --verbose
        traceback.print_exc()
    typer.echo(folded(words, terminal_width(sys.stderr)), err=True)
    raise typer.Exit(code)


def _interrupted() -> str:
    lines = ["interrupted"]
    lines += [f"saved: {', '.join(dict.fromkeys(_saved))}" if _saved else "no result was written"]
    lines += dict.fromkeys(_again)
    return "\n".join(lines)


def _help(doc: str, examples: tuple[str, ...], codes: tuple[int, ...]) -> str:
    """A docstring with examples and exit codes; "\\b" tells typer to leave a paragraph's lines alone."""
    parts = [inspect.cleandoc(doc)]
    if examples:
        parts.append("\b\nExamples:\n" + "\n".join(f"  halp-fx {e}" for e in examples))
    listed = [*sorted({0, FAILED, USAGE, *codes}), INTERRUPTED]
    parts.append("\b\nExit codes:\n" + "\n".join(f"  {code:<4}{_SAID[code]}" for code in listed))
    return "\n\n".join(parts)
