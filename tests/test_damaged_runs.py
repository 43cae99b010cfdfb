"""Every script that shows a run, on runs whose files were damaged or are of an older version: it
draws, or it ends in one line with nothing written. Nothing else.

The runs have no hashes, which would refuse any change. The suite tries some of the damages;
DAMAGES=all tries each, which takes an hour.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import kinds_case
import pandas as pd
import pytest
from script_case import load

from refusal_dial.cli import command_line as cli
from refusal_dial.common import DialError
from refusal_dial.run.schema import (
    ALPHA_COLUMNS,
    CONFIG_KINDS,
    COUNTS,
    TEXT_COLUMN_NAMES,
    UNBOUNDED,
    WHOLE,
    YES_OR_NO,
)

ALL = os.environ.get("DAMAGES") == "all"
TABLES = ("scores.csv", "summary.csv")
VALUES = ("x", "", "inf", "-1", "1e300", "9" * 30)
SETTINGS = ("x", [1, "a"], None, -1, float("nan"))
shows = pytest.mark.parametrize(("kind", "script"), kinds_case.SHOWN, ids=str)
Damage = Callable[[Path], object]
Case = tuple[str, Damage]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the kind, made once, and copied to be damaged."""
    here = tmp_path_factory.mktemp("kinds")
    whole = {kind: kinds_case.leave(here / kind, kind) for kind in kinds_case.MADE}

    def fresh(kind: str) -> Path:
        shutil.rmtree(here / "run", ignore_errors=True)
        return Path(shutil.copytree(whole[kind], here / "run"))

    return fresh


def refusal(script: str, folder: Path) -> str:
    """What the script says of a run that it refuses, with nothing written; empty where it left a
    figure or a page."""
    main, before = load(script).main, {path: path.read_bytes() for path in folder.iterdir()}
    flags: Any = cli.parse_flags(get_type_hints(main)["flags"], [str(folder)], main)
    message = ""
    try:
        main(flags)
    except DialError as error:
        message = str(error)
    same = {path: path.read_bytes() for path in folder.iterdir()} == before
    assert same == bool(message), f"written, and message {message!r}"
    assert "\n" not in message
    assert len(message) < 800
    return message


def table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    def damage(folder: Path) -> None:
        rows = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        change(rows).to_csv(folder / name, index=False, lineterminator="\n")

    return damage


def column(name: str, of: str, value: str | None, last: bool = False) -> Damage:
    """A column that is gone (None), holds one value in every row, or holds it in the last."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        if value is None:
            return rows.drop(columns=of)
        where = rows.index[-1:] if last else rows.index
        rows.loc[where, of] = value
        return rows

    return table(name, change)


def setting(name: str, path: tuple[str, ...], value: Any = KeyError) -> Damage:
    def damage(folder: Path) -> None:
        whole = inside = json.loads((folder / name).read_text())
        for part in path[:-1]:
            inside = inside[part]
        inside[path[-1]] = value
        if value is KeyError:
            del inside[path[-1]]
        (folder / name).write_text(json.dumps(whole))

    return damage


def names(inside: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in inside.items():
        yield (*above, name)
        yield from names(value, (*above, name)) if isinstance(value, dict) else ()


def damages(folder: Path) -> Iterator[Case]:
    """All of them: of every column, of every setting, of the rows."""
    for name in TABLES:
        rows = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        for of in rows:
            yield f"{of} is gone", column(name, of, None)
            for value in VALUES:
                yield f"{of} is {value!r}", column(name, of, value)
            for value in ("x", ""):
                yield f"{of} ends in {value!r}", column(name, of, value, last=True)
        for of in ("direction", "subset", "split", "system"):
            for value in rows[of].unique() if of in rows else ():
                kept = table(name, lambda rows, of=of, value=value: rows[rows[of] != value])
                yield f"no {of} {value}", kept
        for what, part in {"header": slice(0), "one": slice(1), "short": slice(-1)}.items():
            yield f"{name}: {what}", table(name, lambda rows, part=part: rows[part])
        yield f"{name}: twice", table(name, lambda rows: pd.concat([rows, rows]))
        yield f"{name}: binary", lambda folder, name=name: (folder / name).write_bytes(b"\xff\0")
    for name in ("config.json", "summary.json"):
        for path in names(json.loads((folder / name).read_text())):
            yield f"{path} is gone", setting(name, path)
            for value in SETTINGS:
                yield f"{path} is {value}", setting(name, path, value)


def must_fail(kind: str, script: str) -> Iterator[Case]:
    """Damages to what the script names, with what the line says. Of the values that a column cannot
    hold each has one."""
    *columns, settings = kinds_case.SHOWN[kind, script]
    for name, needed in zip(TABLES, columns, strict=True):
        for i, of in enumerate(needed):
            if (kind, of) != ("spared", "completion"):  # which tells how scores are read
                yield f"{name} has no column '{of}'", column(name, of, None)
            wrong = ["x", "9" * 40, *(() if of in UNBOUNDED else ("inf", "1e300"))]
            wrong += [""] if of in ALPHA_COLUMNS | COUNTS else []
            if of not in TEXT_COLUMN_NAMES:
                value = wrong[i % len(wrong)]
                says = "cannot be read" if of in WHOLE else f"column '{of}'"
                yield says if of not in YES_OR_NO else "True or False", column(name, of, value)
        if needed:
            yield "rows twice", table(name, lambda rows: pd.concat([rows, rows[-1:]]))
            yield "holds no rows", table(name, lambda rows: rows[:0])
    for name in settings:
        path = ("settings", *name.split("."))
        yield (
            f"no setting '{name}'" if name != "model.name" else "no name",
            setting("config.json", path),
        )
        for value in ([1], None) if f"settings.{name}" in CONFIG_KINDS else ():
            yield f"settings.{name} is {value}", setting("config.json", path, value)


def some(cases: Iterator[Case], kind: str, script: str, step: int) -> list[Case]:
    """One case of so many, others for every script; or all."""
    start = list(kinds_case.SHOWN).index((kind, script)) * (step // 3)
    return list(cases) if ALL else list(cases)[start % step :: step]


@shows
def test_a_run_is_shown_by_what_the_script_names_and_nothing_else(kind, script, made):
    folder = made(kind)
    *columns, settings = kinds_case.SHOWN[kind, script]
    for name, needed in zip(TABLES, columns, strict=True):
        if needed:
            rows = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
            rows[list(needed)].to_csv(folder / name, index=False)
    config = json.loads((folder / "config.json").read_text())
    kept = {name.split(".")[0] for name in settings}
    config["settings"] = {k: v for k, v in config["settings"].items() if k in kept}
    model = config["settings"]["model"]
    config["settings"]["model"] = {k: v for k, v in model.items() if f"model.{k}" in settings}
    (folder / "config.json").write_text(json.dumps(config))
    assert refusal(script, folder) == ""


@shows
def test_what_a_script_names_must_be_there_and_be_what_a_run_writes(kind, script, made):
    for says, damage in some(must_fail(kind, script), kind, script, 7):
        folder = made(kind)
        damage(folder)
        message = refusal(script, folder)
        assert says in message, (says, message)
        assert str(folder) in message


@shows
def test_whatever_else_is_wrong_is_drawn_or_refused(kind, script, made):
    for what, damage in some(damages(made(kind)), kind, script, 997):
        folder = made(kind)
        damage(folder)
        try:
            refusal(script, folder)
        except Exception as error:
            raise AssertionError(f"{script} on a run whose {what}") from error


@pytest.mark.parametrize("script", sorted({script for _, script in kinds_case.SHOWN}))
def test_a_run_of_another_kind_is_drawn_or_refused(script, made):
    kinds = list(kinds_case.MADE)
    own = [kind for kind in kinds if (kind, script) in kinds_case.SHOWN]
    others = [kind for kind in kinds if kind not in own]
    for kind in others if ALL else others[-1:]:
        refusal(script, made(kind))
