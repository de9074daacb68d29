"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from halp_fx.files import replacing


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
