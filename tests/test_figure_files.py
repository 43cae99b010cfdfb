"""Figures as files: the .html always, others by a browser, and one clear line without one."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pytest

from refusal_dial.common import DialError
from refusal_dial.report import theme as figure_files
from refusal_dial.report.theme import found_browser, styled, write_figures


def figure():
    return styled(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), "title", 300, 400)


def test_the_same_figure_gives_the_same_bytes_and_needs_nothing_from_outside(tmp_path):
    (one,) = write_figures({"curve": figure()}, tmp_path)
    first = one.read_bytes()
    (again,) = write_figures({"curve": figure()}, tmp_path / "again")
    assert again.read_bytes() == first
    assert (one.name, b'id="curve"' in first) == ("curve.html", True)
    assert b'src="http' not in first
    assert len(first) < 2.2e6


def test_out_names_a_folder_or_the_html_file(tmp_path):
    (path,) = write_figures({"a": figure()}, tmp_path, out=str(tmp_path / "mine.html"))
    assert path == tmp_path / "mine.html"
    both = write_figures({"a": figure(), "b": figure()}, tmp_path, out=str(tmp_path / "two"))
    assert [path.relative_to(tmp_path) for path in both] == [Path("two/a.html"), Path("two/b.html")]


def test_one_file_for_several_figures_is_refused(tmp_path):
    """Else there would be a folder with the name of a file."""
    two = {"a": figure(), "b": figure()}
    with pytest.raises(DialError, match=r"one.html' is one file, and these are 2 figures \(a, b\)"):
        write_figures(two, tmp_path, out=str(tmp_path / "one.html"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_browser_the_html_is_there_and_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no browser"))
    assert found_browser() is None
    with pytest.raises(DialError) as caught:
        write_figures({"a": figure()}, tmp_path, ("png", "pdf"))
    message = str(caught.value)
    assert (
        "the .html is written, but png, pdf needs Chrome or Chromium and none was found" in message
    )
    assert "apt install chromium" in message
    assert "\n" not in message
    assert (tmp_path / "a.html").is_file()


def test_without_kaleido_the_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", __file__)
    monkeypatch.setattr(figure_files, "find_spec", lambda name: None)
    with pytest.raises(DialError, match=r"needs kaleido: pip install 'refusal-dial\[figures\]'"):
        write_figures({"a": figure()}, tmp_path, ("svg",))


def test_pictures_have_the_size_of_the_figure(tmp_path):
    if found_browser() is None:
        pytest.skip("no Chrome or Chromium is installed: apt install chromium")
    html, png, svg = write_figures({"a": figure()}, tmp_path, ("png", "svg"))
    head = png.read_bytes()
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(head[i : i + 4]) for i in (16, 20)] == [800, 600]
    assert "<svg" in svg.read_text()
    assert html.is_file()
