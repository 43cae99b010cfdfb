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
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refusal_dial.common import DialError, is_utf8, located, one_of

# --------------------------------------------------------------------------------------------------
# Rows of a .jsonl, .csv or .tsv file, a folder of them, or a data set of the Hugging Face hub.
#
# Each comes with what an error about it should say: the file and line it begins on.


PROMPT_HUB_NAMES = {
    "xstest": "Paul/XSTest",
    "or-bench": "bench-llm/or-bench",
    "wildjailbreak": "allenai/wildjailbreak",
    "do-not-answer": "LibrAI/do-not-answer",
    "sorry-bench": "sorry-bench/sorry-bench-202406",
    "jailbreakbench": "JailbreakBench/JBB-Behaviors",
}

HUB_PARTS: dict[str, tuple[str, ...]] = {
    "bench-llm/or-bench": ("or-bench-hard-1k", "or-bench-toxic"),
    "allenai/wildjailbreak": ("eval",),
    "JailbreakBench/JBB-Behaviors": ("behaviors",),
}
"""Data sets in several parts, and which are read."""

HUB_OPTIONS: dict[str, dict[str, Any]] = {
    "allenai/wildjailbreak": {"delimiter": "\t", "keep_default_na": False}
}
"""How the files of a data set have to be read, where it is not as a hub guesses."""

PROMPT_SUFFIXES = (".jsonl", ".csv", ".tsv")

_Reader = Callable[[Path, list[str]], Iterator[tuple[str, dict[str, Any]]]]


def read_rows(
    source: str, what: str = "prompts", names: Mapping[str, str] = PROMPT_HUB_NAMES
) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a .jsonl, .csv or .tsv file, a folder, or a hub data set, as it
    is: unchecked, `where` being what an error about the row should say.

    Raises `DialError` for a source that does not exist or cannot be read or reached.
    """
    path = located(source)
    if path.is_dir():
        files = sorted(file for suffix in PROMPT_SUFFIXES for file in path.glob(f"*{suffix}"))
        if not files:
            raise DialError(
                f"folder {source!r} holds no {what}: expected .jsonl, .csv or .tsv files"
            )
        return [row for file in files for row in _rows(file)]
    if path.is_file():
        return _rows(path)
    if path.suffix in PROMPT_SUFFIXES or source.startswith((".", "/", "~")):
        raise DialError(
            f"no {what} file {source!r}: give a .jsonl, .csv or .tsv file, a folder, a hub data "
            f"set (owner/name, or {' or '.join(names)}), or 'embedded'"
        )
    return _hub_rows(source, what, names)


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a file; `where` is what an error will say."""
    tabs = partial(_csv, delimiter="\t")
    readers: dict[str, _Reader] = {".jsonl": _jsonl, ".csv": _csv, ".tsv": tabs}
    if path.suffix not in readers:
        raise DialError(f"{path} is no prompts file: expected .jsonl, .csv or .tsv")
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


def _csv(
    path: Path, lines: list[str], delimiter: str = ","
) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
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
        options, parts = HUB_OPTIONS.get(hub_id, {}), HUB_PARTS.get(hub_id, (None,))
        loaded = {
            part: datasets.load_dataset(hub_id, *([part] if part else []), **options)
            for part in parts
        }
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise DialError(f"data set {hub_id!r} cannot be reached ({reason}): {remedy}") from error
    return [
        (f"{hub_id} {part} [{split}], row {i}" if part else f"{hub_id} [{split}], row {i}", row)
        for part, splits in loaded.items()
        for split, rows in splits.items()
        for i, row in enumerate(map(dict, rows), 1)
    ]


def is_rating(value: object) -> bool:
    """Is it a number from 0 to 1, as people's ratings of toxicity are?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


# --------------------------------------------------------------------------------------------------
# Sets of others, by their columns: each row with the columns that ours have, so that a local file
# reads as the hub's data set does.
#
# What looks harmful and is not is EDGE. Where the columns do not say which a row is, its file or
# its part of the data set does. A row with a subset is ours, whatever else it has.


def _or_bench(place: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """OR-Bench (Cui et al. 2024): `prompt, category`; hard-1k and 80k are safe, toxic is not."""
    part = re.search(r"or-bench-(hard|80k|toxic)", place)
    if part is None:
        return None
    return {**row, "subset": "HARMFUL" if part[1] == "toxic" else "EDGE"}


def _wildjailbreak(place: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """WildJailbreak (Jiang et al. 2024): `adversarial, label, data_type`, and `vanilla` in train,
    where `adversarial` is empty for a vanilla row."""
    kind = str(row["data_type"])
    subset = {"harmful": "HARMFUL", "benign": "EDGE"}.get(kind.rpartition("_")[2])
    text = row["adversarial"] or row.get("vanilla")
    return None if subset is None else {"text": text, "subset": subset, "category": kind}


def _do_not_answer(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Do-Not-Answer (Wang et al. 2023): `id, risk_area, types_of_harm, specific_harms, question`;
    no prompt should be answered."""
    found = {"text": row["question"], "subset": "HARMFUL", "category": row["types_of_harm"]}
    return {**found, "id": row.get("id")}


def _sorry_bench(place: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """SORRY-Bench (Xie et al. 2024): `question_id, category, turns, prompt_style`; one turn each,
    all unsafe. A style other than base says the same request in other words."""
    turns = row["turns"]
    if not isinstance(turns, list) or len(turns) != 1:
        return None
    style = str(row.get("prompt_style") or "base")
    name = str(row["question_id"]) + ("" if style == "base" else f"-{style}")
    return {"text": turns[0], "subset": "HARMFUL", "category": row["category"], "id": name}


def _jailbreakbench(place: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """JailbreakBench (Chao et al. 2024): `Index, Goal, Target, Behavior, Category, Source`, in a
    harmful and a benign part of the same topics."""
    part = re.search(r"harmful|benign", place)
    if part is None:
        return None
    subset = {"harmful": "HARMFUL", "benign": "EDGE"}[part[0]]
    name = f"{part[0]}-{row['Index']}"
    return {"text": row["Goal"], "subset": subset, "category": row["Category"], "id": name}


LAYOUTS: tuple[tuple[frozenset[str], Callable[[str, Mapping[str, Any]], Any]], ...] = (
    (frozenset({"adversarial", "data_type"}), _wildjailbreak),
    (frozenset({"question", "types_of_harm", "risk_area"}), _do_not_answer),
    (frozenset({"question_id", "category", "turns"}), _sorry_bench),
    (frozenset({"Index", "Goal", "Category"}), _jailbreakbench),
    (frozenset({"prompt", "category"}), _or_bench),
)
"""Columns that a set has, and its mapping, which gives None for a row that is not of the set."""


def _as_ours(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with our columns, if it is of a set in `LAYOUTS`; else as it is."""
    if row.get("subset"):
        return row
    place = Path(where.rpartition(",")[0]).name.lower()
    for columns, mapping in LAYOUTS:
        if columns <= set(row) and (found := mapping(place, row)) is not None:
            return found
    return row


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
    """Prompts from `source`: `"embedded"`, a .jsonl, .csv or .tsv file, a folder of them, or a data
    set of the Hugging Face hub by name (one of `PROMPT_HUB_NAMES`, or any `owner/name`).

    Rows need a text (`text`, `prompt`, `goal` or `instruction`) and a `subset`; XSTest's `label`
    safe/unsafe reads as EDGE/HARMFUL and its `type` as the category. `id`, `category` and `pair_id`
    are optional, other columns are left alone. Rows of OR-Bench, WildJailbreak, Do-Not-Answer,
    SORRY-Bench and JailbreakBench are known by their columns.

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
        prompt = _prompt(where, _as_ours(where, row), default_id=f"{len(prompts) + 1:04d}")
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
