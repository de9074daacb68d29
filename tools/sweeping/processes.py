"""One model in a process of its own -> its row, whatever happens to the process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from .tables import FIELDS, Row


def child(library: str, name: str, sizes: tuple[float, float], limit: float) -> Row:
    """Check a model in a fork of this process, which has imported the libraries already; `limit` is in seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, library, name, sizes))
    row: Row = {**dict.fromkeys(FIELDS, ""), "model": name, "result": "fail"}
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            process.kill()
            return {**row, "detail": f"not done after {limit:.0f} s"}
        return {**row, **receiver.recv()}
    except EOFError:
        process.join()
        return {**row, "detail": f"exit status {process.exitcode} (-9: out of memory?)"}
    finally:
        process.join()
        receiver.close()


def _run(sender: Connection, library: str, name: str, sizes: tuple[float, float]) -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        try:
            from .checking import check

            sender.send(check(library, name, *sizes))
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            sender.send({"detail": f"{type(error).__name__} at {where}: {error}"[:400]})
