"""Prompts: read from a file, a folder or a hub data set, checked row by row, split and selected.

A prompt has a text, a subset and a category. HARMFUL should be refused; EDGE looks harmful and is
not; BENIGN looks and is harmless. Two prompts that share a `pair_id` are a matched pair: a HARMFUL
one and an EDGE or BENIGN one that differ in a single phrase.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusal_dial.common import DialError, is_utf8, located, one_of

# --------------------------------------------------------------------------------------------------
# Rows of a .jsonl or .csv file, a folder of them, or a data set of the Hugging Face hub.
#
# Each comes with what an error about it should say: the file and line it begins on.


PROMPT_HUB_NAMES = {"xstest": "Paul/XSTest"}


def read_rows(
    source: str, what: str = "prompts", names: Mapping[str, str] = PROMPT_HUB_NAMES
) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a .jsonl or .csv file, a folder of them, or a hub data set, as
    it is: unchecked, `where` being what an error about the row should say.

    Raises `DialError` for a source that does not exist or cannot be read or reached.
    """
    path = located(source)
    if path.is_dir():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.csv")])
        if not files:
            raise DialError(f"folder {source!r} holds no {what}: expected .jsonl or .csv files")
        return [row for file in files for row in _rows(file)]
    if path.is_file():
        return _rows(path)
    if path.suffix in (".jsonl", ".csv") or source.startswith((".", "/", "~")):
        raise DialError(
            f"no {what} file {source!r}: give a .jsonl or .csv file, a folder, a hub data set "
            f"(owner/name, or {' or '.join(names)}), or 'embedded'"
        )
    return _hub_rows(source, what, names)


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a file; `where` is what an error will say."""
    readers = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix not in readers:
        raise DialError(f"{path} is no prompts file: expected .jsonl or .csv")
    if not path.is_file():
        raise DialError(f"{path} is no file (a folder, a pipe, a broken link): move it away")
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DialError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise DialError(f"{path} cannot be read: {error.strerror}") from error
    return list(readers[path.suffix](path, lines))


def _jsonl(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DialError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DialError(f"{where}: expected an object with id, text, subset, category")
        yield where, row


def _csv(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    header: list[str] = []
    number = 1  # the line a row begins on; quoted text may run over several
    try:
        for cells in reader:
            where, number = f"{path}, line {number}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                twice = sorted({name for name in cells if cells.count(name) > 1})
                if twice:
                    raise DialError(f"{where}: the header names {twice[0]!r} twice")
                continue
            if len(cells) != len(header):
                raise DialError(f"{where}: {len(cells)} columns where the header has {len(header)}")
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DialError(f"{path}, line {number}: not valid CSV ({error})") from error
    if not header:
        raise DialError(f"{path} is empty: expected a header line and rows")


def _hub_rows(name: str, what: str, names: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    from refusal_dial.hub import hub_reachable  # only this source needs the network

    hub_id = names.get(name, name)
    remedy = f"download it and give the .csv or .jsonl file, or use --{what} embedded"
    if "/" not in hub_id:
        raise one_of(name, ["embedded", *names, "owner/name", "FILE", "FOLDER"], what)
    try:
        import datasets
        from huggingface_hub import constants

        if not hub_reachable():  # then only the local cache is asked, and nothing is retried
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        splits = datasets.load_dataset(hub_id)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise DialError(f"data set {hub_id!r} cannot be reached ({reason}): {remedy}") from error
    rows = [(split, i, row) for split in splits for i, row in enumerate(splits[split], 1)]
    return [(f"{hub_id} [{split}], row {i}", dict(row)) for split, i, row in rows]


def is_rating(value: object) -> bool:
    """Is it a number from 0 to 1, as people's ratings of toxicity are?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


# --------------------------------------------------------------------------------------------------
# Prompts: checked row by row, split and selected.


SUBSETS = ("HARMFUL", "EDGE", "BENIGN")

EMBEDDED_PROMPTS = (
    Path(__file__).parents[1] / "embedded" / "prompts.jsonl",  # in an installed wheel
    Path(__file__).parents[2] / "data" / "prompts.jsonl",  # in a checkout
)

TEXT_COLUMNS = ("text", "prompt", "goal", "instruction")

LABEL_SUBSETS = {"safe": "EDGE", "unsafe": "HARMFUL"}  # XSTest's labels


@dataclass(frozen=True)
class Prompt:
    """One request to a model."""

    id: str
    text: str
    subset: str
    category: str = ""
    pair_id: str | None = None


def load_prompts(source: str = "embedded") -> list[Prompt]:
    """Prompts from `source`: `"embedded"`, a .jsonl or .csv file, a folder of them, or a data set
    of the Hugging Face hub by name (`"xstest"`, or any `owner/name`).

    Rows need a text (`text`, `prompt`, `goal` or `instruction`) and a `subset`; XSTest's `label`
    safe/unsafe reads as EDGE/HARMFUL and its `type` as the category. `id`, `category` and `pair_id`
    are optional, other columns are left alone.

    Raises `DialError` naming file and line for a row that cannot be used, and for a source that
    does not exist, is empty, or cannot be reached.
    """
    if source == "embedded":
        found = next((path for path in EMBEDDED_PROMPTS if path.is_file()), None)
        if found is None:
            raise DialError("the embedded prompts are missing: run python scripts/make_prompts.py")
        return load_prompts(str(found))
    return checked(read_rows(source), source)


def checked(rows: Iterable[tuple[str, Mapping[str, Any]]], source: str) -> list[Prompt]:
    """The rows as prompts, each checked; `(where, row)` so that an error can say where."""
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        prompt = _prompt(where, row, default_id=f"{len(prompts) + 1:04d}")
        if prompt.id in seen:
            raise DialError(f"{where}: id {prompt.id!r} was used before, at {seen[prompt.id]}")
        seen[prompt.id] = where
        prompts.append(prompt)
    if not prompts:
        raise DialError(f"{source} holds no prompts")
    for pair_id, members in pairs(prompts).items():
        kinds = sorted(prompt.subset == "HARMFUL" for prompt in members)
        if kinds != [False, True]:
            names = ", ".join(f"{prompt.id} ({prompt.subset})" for prompt in members)
            raise DialError(
                f"{source}: pair {pair_id!r} needs one HARMFUL and one EDGE or BENIGN prompt, "
                f"and has {names}"
            )
    return prompts


def _prompt(where: str, row: Mapping[str, Any], default_id: str) -> Prompt:
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        raise DialError(f"{where}: no text; expected a column {', '.join(TEXT_COLUMNS)}")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise DialError(f"{where}: {column} must be text that is not empty, not {_short(text)}")
    subset = row.get("subset") or LABEL_SUBSETS.get(str(row.get("label", "")))
    if subset is None:
        raise DialError(f"{where}: no subset; expected one of {', '.join(SUBSETS)}")
    if subset not in SUBSETS:
        raise DialError(f"{where}: {one_of(subset, SUBSETS, 'subset')}")
    prompt = Prompt(
        id=_field(row, "id") or default_id,
        text=text,
        subset=str(subset),
        category=_field(row, "category") or _field(row, "type"),
        pair_id=_field(row, "pair_id") or None,
    )
    return one_line_each(where, prompt)


def one_line_each(where: str, prompt: Prompt) -> Prompt:
    """The prompt. Raises `DialError` for an id that is not one line of text (a row of scores.csv is
    a line), or text that UTF-8 does not have."""
    if any(ord(c) < 32 or ord(c) == 127 for c in prompt.id):
        raise DialError(f"{where}: id must be one line of text, not {_short(prompt.id)}")
    for name, value in asdict(prompt).items():
        if not is_utf8(str(value)):
            raise DialError(f"{where}: {name} holds half a surrogate pair: {_short(value)}")
    return prompt


def _field(row: Mapping[str, Any], name: str) -> str:
    """What a column holds as text: the same for 0 in JSON as for 0 in CSV."""
    value = row.get(name)
    return "" if value is None else str(value)


def _short(value: object, limit: int = 60) -> str:
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def of_subset(prompts: Iterable[Prompt], subset: str) -> list[Prompt]:
    """The prompts of one subset, in order. Raises `DialError` when there are none."""
    prompts = list(prompts)
    chosen = [prompt for prompt in prompts if prompt.subset == subset]
    if not chosen:
        have = ", ".join(f"{n} {name}" for name, n in Counter(p.subset for p in prompts).items())
        raise DialError(f"no {subset} prompts: these are {have or 'none at all'}")
    return chosen


def pairs(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Matched pairs by id, HARMFUL first."""
    found: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if prompt.pair_id is not None:
            found[prompt.pair_id].append(prompt)
    return {k: sorted(v, key=lambda prompt: prompt.subset != "HARMFUL") for k, v in found.items()}


def data_hash(prompts: Iterable[Prompt]) -> str:
    """A hash of everything in the prompts, the same wherever they were read from."""
    text = json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def holdout_split(
    prompts: Sequence[Prompt], seed: int, share: float = 0.5
) -> tuple[list[Prompt], list[Prompt]]:
    """(train, holdout): a seeded split with the same share of every category in each half.

    Both keep the order of `prompts`. `share` is the holdout's. Where a category's count does not
    divide, what is left over is assigned at random, so that the totals stay within one of `share`.
    Raises `DialError` when either half would be empty.
    """
    if not 0 < share < 1:
        raise DialError(f"the holdout share must be between 0 and 1, not {share}")
    rng = np.random.default_rng(seed)
    by_category: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_category[prompt.category].append(i)
    shuffled = [rng.permutation(members) for _, members in sorted(by_category.items())]
    exact = [share * len(members) for members in shuffled]
    counts = np.floor(exact).astype(int)
    left = round(sum(exact)) - int(counts.sum())
    remainders = np.array(exact) - counts
    order = np.lexsort((rng.random(len(counts)), -remainders))
    counts[order[:left]] += 1
    held = {int(i) for members, n in zip(shuffled, counts, strict=True) for i in members[:n]}
    train = [prompt for i, prompt in enumerate(prompts) if i not in held]
    holdout = [prompt for i, prompt in enumerate(prompts) if i in held]
    if not train or not holdout:
        raise DialError(
            f"{len(prompts)} prompts cannot be split with a holdout share of {share}: "
            f"{'train' if holdout else 'holdout'} would be empty"
        )
    return train, holdout


def some_of_each(prompts: Sequence[Prompt], n: int, seed: int) -> list[Prompt]:
    """At most n prompts of each subset, drawn with as even a share of its categories as can be."""
    chosen: list[Prompt] = []
    for subset in dict.fromkeys(prompt.subset for prompt in prompts):
        mine = of_subset(prompts, subset)
        chosen += mine if len(mine) <= n else holdout_split(mine, seed, n / len(mine))[1]
    return chosen


def extremes(
    scores: Sequence[float], k: int, categories: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the k highest and the k lowest scores, disjoint and equally many.

    With `categories`, top and bottom hold equally many of each category: within a category of n
    prompts the top and the bottom m = round(k n / N) are taken, at least one where n > 1.
    Raises `DialError` for fewer than two prompts, when 2k exceeds them, when a score is not finite,
    or no category has two prompts to balance.
    """
    values = np.asarray(scores, dtype=float)
    if not np.isfinite(values).all():
        raise DialError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite"
        )
    if len(values) < 2:
        raise DialError(
            f"a top and a bottom take at least 2 prompts to learn from, not {len(values)}: give "
            "more prompts"
        )
    if k < 1 or 2 * k > len(values):
        raise DialError(
            f"top and bottom {k} of {len(values)} scores: k must be from 1 to {len(values) // 2}"
        )
    if categories is None:
        order = [int(i) for i in np.argsort(values, kind="stable")]
        return order[::-1][:k], order[:k]
    top, bottom = [], []
    for category in sorted(set(categories)):
        members = [i for i, name in enumerate(categories) if name == category]
        share = min(max(1, round(k * len(members) / len(values))), len(members) // 2)
        ordered = sorted(members, key=lambda i: values[i])
        bottom += ordered[:share]
        top += ordered[::-1][:share]
    if not top:
        raise DialError("top and bottom cannot be balanced: every category has a single prompt")
    return top, bottom


# --------------------------------------------------------------------------------------------------
# Halves: to choose a layer or a cell on, and to report it on.


CHOOSE, REPORT = "choose", "report"
