"""Python blocks of Markdown pages, run as a reader would: one page in order, in one namespace, in an empty folder.

What stands in a comment directly before a block is for the tests only:

    <!-- not run: needs a GPU -->       the block is left out, and the reason is shown
    <!-- needs: timm -->                it is left out where the package is not installed
    <!-- before: x = torch.rand(3) -->  runs before the block: what a reader has and the page need not show
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>not run|needs|before): ?(?P<note>.*?) ?-->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its page, its first line there, its code, and what the comment before it says."""

    page: Path
    line: int
    code: str
    before: str = ""
    needs: str = ""
    left_out: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here; "" if it can."""
        if self.left_out:
            return self.left_out
        absent = [name for name in self.needs.split() if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""


def blocks(page: Path) -> Iterator[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        notes = {"not run": "left_out", "needs": "needs", "before": "before"}
        said = {notes[match["kind"]]: match["note"].strip() or "no reason given"} if match["kind"] else {}
        yield Block(page, text.count("\n", 0, match.start("code")) + 1, match["code"], **said)


def run(page: Path) -> list[str]:
    """Run a page's blocks in the present folder; returns what was left out: "page.md:12: reason"."""
    names: dict[str, Any] = {"__name__": "page"}
    left_out = []
    for block in blocks(page):
        if block.missing:
            left_out.append(f"{page.name}:{block.line}: {block.missing}")
            continue
        # Lines are those of the page, so a traceback points into it.
        exec(compile(block.before, f"{page} (before line {block.line})", "exec"), names)
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
    return left_out
