"""cli.console: what people see while they wait, without a terminal."""

import io
import sys

import pytest

from cli import console
from cli.console import emit, reporting, say_if_large, show
from collafuse.core.errors import UsageError


def test_a_bar_without_a_terminal_is_a_line_at_the_end(capsys):
    with reporting() as reporter:
        bar = reporter.bar("finish", 3)
        bar.advance(1)
        bar.advance(2)
        reporter.say("done")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("finish: 3/3, ") and second == "done"


def test_data_that_nobody_could_read_is_no_success(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UsageError, match="stdout, which is closed"):
        emit({"images": 3})


def test_a_service_without_a_stderr_works_in_silence(monkeypatch, capsys):
    """Where it was closed at the start, Python has none; and print() then writes to stdout, which is data."""
    monkeypatch.setattr(sys, "stderr", None)
    console.say("Look at it.")
    with reporting() as reporter:
        reporter.bar("finish", 2).advance(2)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with reporting() as reporter:
        reporter.bar("finish", 2).advance(2)
    assert "finish" in terminal.getvalue() and "2/2" in terminal.getvalue()


@pytest.mark.parametrize(("size", "said"), [(10, ""), (11, "Checking 0 MB in ")])
def test_a_large_file_is_announced(tmp_path, monkeypatch, capsys, size, said):
    monkeypatch.setattr(console, "LARGE_BYTES", 10)
    (tmp_path / "file").write_bytes(bytes(size))
    say_if_large(tmp_path / "file", "Checking")
    say_if_large(tmp_path / "gone", "Checking")
    shown = capsys.readouterr().err
    assert shown.startswith(said) if said else shown == ""


def test_numbers_are_shown_short(capsys):
    show({"sigma": 0.34000000000000002, "labels": {"a": 2}, "none": None, "names": ["x", "y"]})
    assert [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()] == [
        "0.34",
        "a 2",
        "-",
        "x, y",
    ]


def test_what_a_file_says_steers_no_terminal(capsys):
    persian = "\u0645\u06cc\u200c\u062e\u0648"
    show({"role": "a\x1b[2Jb", "na\rme": ["\x07"], "prompts": [persian], "in": {"a": "\u202e"}})
    shown = capsys.readouterr().out
    assert "a\\x1b[2Jb" in shown and "na\\rme" in shown and persian in shown
    assert all(c.isprintable() or c in "\n\u200c" for c in shown)
