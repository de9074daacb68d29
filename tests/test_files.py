"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

import pytest
import torch

from halp_fx.files import replacing, write_tensors, write_text


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
