"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import halp_fx
from halp_fx.errors import HalpError, PathError
from halp_fx.files import file_to_write, path_of, replacing, why_unreadable, write_tensors, write_text
from halp_fx.latency import Fingerprint, LatencyTable, TableLatency, read_table, write_table
from halp_fx.latency.request import read_request
from halp_fx.reporting.plots import save_report_plots
from halp_fx.solver import WidthProblem


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_modes_are_those_of_the_old_file_or_of_any_new_one(tmp_path, umask):
    path = tmp_path / "file"
    for expected, private in ((0o640, True), (0o664, True), (0o664, False)):
        with replacing(path) as temporary:
            if private:
                temporary.unlink()
                os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
            temporary.write_text("new")
        assert path.stat().st_mode & 0o777 == expected
        path.chmod(0o664)


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_that_are_not_there_are_made(tmp_path):
    assert write_text(tmp_path / "a" / "b" / "file", "new").read_text(encoding="utf-8") == "new"


@contextmanager
def full_disk():
    """A disk that has room for 4 kB more: no longer than one call, for what a test run prints may go to a file."""
    resource = pytest.importorskip("resource", reason="POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's")
@pytest.mark.parametrize(
    "write",
    [lambda path: write_text(path, "x" * 9000), lambda path: write_tensors(path, {"x": torch.zeros(3000)}, {})],
    ids=["text", "tensors"],
)
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path, write):
    path = tmp_path / "file.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match="too large") as raised, full_disk():
        write(path)
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


NOWHERE = {
    "folder": "is a folder",
    "file/in/a/file": "file is a file, and no folder",
    "": "the path is empty",
}


@pytest.mark.parametrize("path", NOWHERE)
def test_where_no_file_can_be_is_said_before_anything_is_done(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(PathError, match=NOWHERE[path]):
        file_to_write(path)
    with pytest.raises(HalpError, match=NOWHERE[path] if path else "is a folder"), replacing(Path(path)):
        pytest.fail("not reached")
    assert sorted(os.listdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_what_is_read_only_is_named(tmp_path, monkeypatch):
    """By what the system says: whoever is root may write everywhere."""
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PathError, match="file cannot be written: it is read-only"):
        file_to_write(tmp_path / "file")
    with pytest.raises(PathError, match=f"{tmp_path.name} is read-only"):
        file_to_write(tmp_path / "new" / "file")


def test_home_and_kinds_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert path_of("~/a") == path_of(Path("~/a")) == tmp_path / "a"
    for none in (None, 3, b"bytes"):
        with pytest.raises(PathError, match="pass a string"):
            path_of(none)
    error = pickle.loads(pickle.dumps(PathError("said")))
    assert isinstance(error, OSError)
    assert str(error) == "said"


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, words in (("", "is a folder: name a file in it"), ("none", "there is no file"), ("bytes", "is not text")):
        path = tmp_path / name
        with pytest.raises((OSError, UnicodeDecodeError)) as raised:
            path.read_text(encoding="utf-8")
        assert words in why_unreadable(path, raised.value)
        assert str(path) in why_unreadable(path, raised.value)


@pytest.fixture(scope="module")
def small():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    return halp_fx.prune(net, 0.6, torch.rand(1, 3, 8, 8), latency="macs", progress=False)


X = torch.rand(1, 3, 8, 8)
# Everything public that takes a path. What reads "file" finds no such file in it.
TAKING = {
    "save": lambda small, path: halp_fx.save(small, path),
    "load": lambda small, path: halp_fx.load(path, lambda: small),
    "export": lambda small, path: halp_fx.export(small, f"{path}.onnx", X),
    "to_html": lambda small, path: small.halp.to_html(path),
    "graphml": lambda small, path: halp_fx.dependency_graph(small, X).write_graphml(path),
    "write_table": lambda small, path: write_table(LatencyTable(Fingerprint.of(torch.device("cpu"))), path),
    "read_table": lambda small, path: read_table(path),
    "TableLatency": lambda small, path: TableLatency(path),
    "read_request": lambda small, path: read_request(path),
    "plan": lambda small, path: halp_fx.passes.PruneChannels(f"{path}.json", X),
    "state": lambda small, path: halp_fx.prune(small, 0.9, X, latency="macs", state=f"{path}/file", progress=False),
    "solve": lambda small, path: WidthProblem.from_json(Path(path)),
    "plots": lambda small, path: save_report_plots(small.halp, f"{path}/file"),
}


@pytest.mark.parametrize("takes", TAKING)
def test_whatever_takes_a_path_says_what_is_wrong_with_it(small, tmp_path, monkeypatch, takes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    with pytest.raises(HalpError, match="folder"):
        TAKING[takes](small, "folder")
    assert (tmp_path / "folder" / "file").read_text() == "old"
