"""Text that fits a terminal: what gives way, in which order, and what never does."""

from __future__ import annotations

import os
import pty
import shlex
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_fx.fitting import FILE, Column, command, folded, tabled, terminal_width

COLUMNS = (
    Column.name("layer", gives=2),
    Column("operator", gives=1),
    Column.number("width", gives=3),
    Column.number("ms"),
)
ROWS = (("backbone.layer1.0.conv1", "convolution", "64 -> 128", "0.6864"), ("fc", "addmm", "512 -> 10", "0.0123"))


def widest(text):
    return max(map(len, text.splitlines()))


def test_where_there_is_room_nothing_gives_way():
    whole = tabled(COLUMNS, ROWS, 200)
    assert whole == tabled(COLUMNS, ROWS, widest(whole))
    assert whole.splitlines()[:3] == [
        "layer                    operator         width      ms",
        "-----------------------  -----------  ---------  ------",
        "backbone.layer1.0.conv1  convolution  64 -> 128  0.6864",
    ]


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        (54, ("layer", "width", "ms"), "operator"),
        (41, ("layer", "width", "ms"), "operator"),
        (38, ("layer", "ms"), "operator, width"),
    ],
)
def test_columns_give_way_in_their_order(width, there, gone):
    head, *_, last = tabled(COLUMNS, ROWS, width).splitlines()
    assert tuple(head.split()) == there
    assert last == f"no room for: {gone}"
    assert widest(tabled(COLUMNS, ROWS, width)) <= width


def test_names_break_after_a_dot():
    assert "backbone.layer1.0.\nconv1" in "\n".join(
        line.split("  ")[0] for line in tabled(COLUMNS, ROWS, 40).splitlines()
    )


def test_sentences_break_between_words_before_a_column_goes():
    columns = (Column.name("group"), Column.number("size", gives=2), Column.words("reason"))
    text = tabled(columns, [("fc", "10", "reaches the output of the model as it is")], 40)
    assert widest(text) <= 40
    assert "size" in text
    assert " ".join(text.split()).endswith("10 reaches the output of the model as it is")


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(30, 150),
    rows=st.lists(
        st.tuples(
            st.text("ab.", min_size=1, max_size=60),
            st.floats(-1e6, 1e6),
            st.text("abcd efgh", max_size=90).map(str.strip),
        ),
        max_size=4,
    ),
)
def test_a_table_fits_and_its_numbers_are_whole(width, rows):
    # 20 for a name, 12 for a number, 24 for a sentence, and blanks between them: what is to fit below that may not.
    columns = (Column.name("layer"), Column.number("ms"), Column.words("reason"))
    text = tabled(columns, [(a, f"{b:.6g}", c) for a, b, c in rows], width)
    assert widest(text) <= max(width, 20 + 2 + 12 + 2 + 24)
    assert all(f"{b:.6g}" in text for _, b, _ in rows)
    left = sorted(x for x in "".join(text.splitlines()[2:]) if x in "abcdfgh")  # Not e, which numbers may have.
    assert left == sorted(x for a, _, c in rows for x in a + c if x in "abcdfgh")


def test_without_headings_and_rows():
    assert tabled((Column(""), Column.number("")), [("a", "1"), ("bc", "22")]) == "a    1\nbc  22"
    assert tabled((Column("a"), Column.number("b")), []).split() == ["a", "b", "-", "-"]


def test_sentences_are_folded_with_an_indent_and_tables_are_not():
    text = folded("one two three four\n  five six seven eight\na table  with columns as wide as it is", 12)
    assert text.splitlines()[:3] == ["one two", "  three four", "  five six"]
    assert text.splitlines()[-1] == "a table  with columns as wide as it is"
    assert folded("averylongpath/that/nobody/could/copy otherwise", 20).splitlines()[0] == (
        "averylongpath/that/nobody/could/copy"
    )
    assert folded("one two three four") == "one two three four"  # No terminal.


def test_a_command_goes_on_after_a_backslash(monkeypatch):
    words = ["halp-fx", "prune", "a net.py:make", "--input", "1x3x224x224", "--set", "num_classes=10"]
    assert command(words) == shlex.join(words)
    monkeypatch.setenv("COLUMNS", "40")
    text = command(words, indent=5)
    assert max(len(line) for line in text.splitlines()) <= 40
    assert shlex.split(text.replace("\\\n", " ")) == words
    assert "--input 1x3x224x224" in text  # An option stays with its value.


def test_the_width_is_the_terminals(monkeypatch, tmp_path):
    assert terminal_width() is None  # Pytest's own.
    assert widest(tabled((Column.words("a"),), [("word " * 90,)])) <= FILE
    main, end = pty.openpty()
    with os.fdopen(main, "w"), os.fdopen(end, "w") as screen:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 57, 0, 0))
        monkeypatch.setattr(sys, "stdout", screen)
        assert terminal_width() == 57
        monkeypatch.setenv("COLUMNS", "61")
        assert terminal_width() == 61
    monkeypatch.setenv("COLUMNS", "many")
    with (tmp_path / "a").open("w") as file:
        assert terminal_width(file) is None
