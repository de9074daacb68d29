"""A folder to work in, and a way to run commands in it."""

from __future__ import annotations

import pytest
from command_line import NETS, Result
from typer.testing import CliRunner

from halp_fx.cli.app import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in a folder of its own with nets.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)

    def invoke(*words):
        found = CliRunner().invoke(app, [str(w) for w in words])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Result(found.exit_code, found.stdout, found.stderr)

    return invoke
