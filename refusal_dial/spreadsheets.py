"""Cells that a spreadsheet would run as formulas, written so that it shows them instead.

    =1+1  ->  '=1+1        'tis  ->  'tis        '=1+1  ->  ''=1+1

A spreadsheet runs a cell that begins with = + - @ (full width too), a tab or a return (OWASP, CSV
injection); some drop blanks and invisible characters before they look. Text like that gets an
apostrophe in front, on its way to a file, and loses it on its way back, so that what is read is
what was written. Numbers stay numbers. It knows frames, and no files. It does not know at which
character a spreadsheet cuts lines into cells: one that cuts at semicolons is told to take commas.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

_UNSEEN = r"\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_RUN = re.compile(rf"'*(?:[\t\r]|[{_UNSEEN}]*[=+\-@＝＋－＠﹦﹢﹣﹫])")


def shown(text: str) -> str:
    """The text as a spreadsheet will show it, and not run it."""
    return f"'{text}" if _RUN.match(text) else text


def meant(cell: str) -> str:
    """The text that `shown` was given."""
    return cell[1:] if cell.startswith("'") and _RUN.match(cell) else cell


def to_show(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text as `shown`."""
    return _each(frame, shown)


def as_meant(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text as `meant`: `as_meant(to_show(frame))` is the frame."""
    return _each(frame, meant)


def _each(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            texts = {v: change(v) for v in column.unique() if isinstance(v, str)}
            texts = {before: after for before, after in texts.items() if before != after}
            if texts:
                changed[name] = column.map(lambda v, t=texts: t.get(v, v)).astype(column.dtype)
    return frame.assign(**changed)
