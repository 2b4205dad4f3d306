"""The line on the terminal that says how downloads go on."""

from __future__ import annotations

import io

from mms.cli.progress import ProgressLine


def test_one_download_is_named_with_a_bar() -> None:
    line = ProgressLine(io.StringIO())
    line.update("https://host/models/crepe.model", 250_000, 1_000_000)
    assert line.line() == "downloading crepe.model  [######------------------]  25% of 1.0 MB"


def test_several_are_counted_together() -> None:
    line = ProgressLine(io.StringIO())
    line.update("s3://bucket/a", 250_000, 1_000_000)
    line.update("s3://bucket/b", 750_000, 1_000_000)
    assert line.line() == "downloading 2 models  [############------------]  50% of 2.0 MB"
    line.finish("s3://bucket/a")
    assert line.line() == "downloading b  [##################------]  75% of 1.0 MB"


def test_without_a_length_there_are_bytes_and_no_bar() -> None:
    line = ProgressLine(io.StringIO())
    line.update("s3://bucket/a", 250_000, 1_000_000)
    line.update("https://host/b", 5_000_000, None)
    assert line.line() == "downloading 2 models  5.2 MB"


def test_more_than_was_announced_is_no_more_than_all() -> None:
    line = ProgressLine(io.StringIO())
    line.update("https://host/b", 200_000, 0)
    assert "100%" in line.line()


def test_it_is_drawn_over_itself_within_the_terminal_and_taken_away_at_the_end() -> None:
    terminal = io.StringIO()
    line = ProgressLine(terminal)
    line.update(f"https://host/{'x' * 500}", 1, 2)
    drawn = terminal.getvalue()
    assert drawn.startswith("\rdownloading xxx")
    assert drawn.endswith("\x1b[K\r")
    assert "\n" not in drawn
    assert len(drawn) < 200
    line.finish(f"https://host/{'x' * 500}")
    assert terminal.getvalue() == f"{drawn}\r\x1b[K\r"
    # What was never begun has nothing to take away.
    line.finish("https://host/y")
    assert terminal.getvalue() == f"{drawn}\r\x1b[K\r"
