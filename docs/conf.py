"""Settings of the documentation site: `python -m sphinx -W --keep-going docs docs/_build`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from typer.testing import CliRunner

from halp_fx import __version__
from halp_fx.cli.app import app as command_line

project = "halp_fx"
copyright = "the halp_fx authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

# Pages are Markdown that also reads well where it lies in the repository; docstrings are in Google's style, with `code`
# in single backticks.
default_role = "code"
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("BudgetLike", "Examples", "Ignored", "Importance", "LossFn", "Method")}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "halp_fx"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


class Commands(Directive):
    """`{commands}`: the help of `halp-fx` and of each of its commands, as they print it."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        return list(_helped(typer.main.get_command(command_line), []))


def _helped(command: Any, words: list[str]) -> Iterator[nodes.Node]:
    """A section with what a command prints for `--help`, then those of its own commands."""
    name = " ".join(["halp-fx", *words])
    section = nodes.section(ids=[name.replace(" ", "-")], names=[name])
    text = (
        CliRunner().invoke(command_line, [*words, "--help"], prog_name="halp-fx", env={"COLUMNS": "80"}).stdout.strip()
    )
    section += [nodes.title(text=name), nodes.literal_block(text, text, language="text")]
    yield section
    for word, child in getattr(command, "commands", {}).items():
        yield from _helped(child, [*words, word])


def _read(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Docstrings as they are meant: bars and asterisks as they stand (`|gamma|`, "layer1.*"), and as code what is
    indented after an empty line."""
    read: list[str] = []
    in_code = False
    for before, line in zip(["", *lines], [*lines, ""], strict=True):
        if line.startswith("    ") and not before.strip() and any(read):
            shown = next(text for text in reversed(read) if text)
            if not in_code and not shown.startswith(" "):
                read += [".. code-block:: python", ""]
                in_code = True
        elif line.strip() and not line.startswith("    "):
            in_code = False
        parts = line.split("`")
        if not in_code:
            parts[::2] = [re.sub(r"(?<![\w\\])([*|])(?=\S)", r"\\\1", part) for part in parts[::2]]
        read.append("`".join(parts))
    # Of a property napoleon takes what stands before a colon in the first line for its type: that is an empty comment.
    lines[:] = ["..", "", *read] if what in ("attribute", "property") else read


def _alias(app: Any, what: str, name: str, thing: object, options: Any, signature: str, returns: str) -> Any:
    """Aliases of types by their names alone."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returns))


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-signature", _alias)
    app.connect("autodoc-process-docstring", _read, priority=400)  # Before napoleon, at 500.
