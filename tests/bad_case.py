"""Input that nobody wants: values of flags, files of every kind, and a script run on them in this
process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from script_case import load

from refusal_dial.cli import command_line as cli


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass(frozen=True)
class Ended:
    """How a script ended: its code, what it printed, and whether it left or changed a file."""

    code: int
    out: str
    err: str
    touched: bool

    @property
    def line(self) -> str:
        """The one line of the error; fails where there is none, or more than that."""
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert self.code == 2, (self.code, self.err)
        assert len(errors) == 1, self.err
        assert lines[-1] == errors[0], self.err
        assert "Traceback" not in self.err
        assert not self.touched, "a file was left behind"
        assert len(errors[0]) < 1200, f"{len(errors[0])} characters"
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in errors[0]), repr(errors[0])
        return errors[0]


def run(path: Path, arguments: list[str], folder: Path, capsys) -> Ended:
    """The script on a command line, in this process, with `folder` as its own."""
    before = files_in(folder)
    capsys.readouterr()
    try:
        cli.run(load(path.stem).main, arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return Ended(code, *capsys.readouterr(), touched=files_in(folder) != before)


# --- values of flags

VALUES = ["nan", "inf", "-inf", "1e999", "1e30", "many", "1.5", "[]", "{}", "True", "None", ""]
VALUES += ["\x1b[2J", "9" * 400, "1,1", "-1", "0", "1:2:1", "a:b:c", "é🙂", "../..", "0:1:1e9"]
VALUES += ["1,[2]", "{'a': 1}", "(" * 5000, "\u202eabc", "1;2", "0x10", "'", "\\", "\x00", "-0.5"]
VALUES += ["0x" + "f" * 5000, "-0x" + "f" * 5000, "9" * 5000, "1,0x" + "f" * 5000, "999999999999"]
VALUES += ["a\udcffb", "٣", "[1,", "1,,2", "/proc/self/mem", "/dev/zero"]


# --- rows of prompts

GOOD = {"id": "a", "text": "How?", "subset": "EDGE"}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def row(**changes: object) -> dict[str, object]:
    return {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}


PROMPTS: dict[str, tuple[str, bytes]] = {
    "empty": (".jsonl", b""),
    "blank lines": (".jsonl", b"\n\n \n"),
    "no json": (".jsonl", b"how do I\n"),
    "half a line": (".jsonl", lines(GOOD)[:-5]),
    "torn second line": (".jsonl", lines(GOOD, row(id="b"))[:-9]),
    "not utf-8": (".jsonl", b'{"id": "a", "text": "\xff\xfe", "subset": "EDGE"}\n'),
    "latin-1": (".jsonl", '{"id": "a", "text": "café", "subset": "EDGE"}\n'.encode("latin-1")),
    "utf-16": (".jsonl", lines(GOOD).decode().encode("utf-16")),
    "zeros": (".jsonl", b"\x00" * 64),
    "a list": (".jsonl", lines([1, 2])),
    "a number": (".jsonl", b"3\n"),
    "null": (".jsonl", b"null\n"),
    "deep": (".jsonl", b"[" * 100_000 + b"\n"),
    "huge number": (".jsonl", b'{"id": ' + b"9" * 5000 + b', "text": "x", "subset": "EDGE"}\n'),
    "no text": (".jsonl", lines(row(text=...))),
    "no subset": (".jsonl", lines(row(subset=...))),
    "text is a list": (".jsonl", lines(row(text=["How?"]))),
    "text is a number": (".jsonl", lines(row(text=3))),
    "text is null": (".jsonl", lines(row(text=None))),
    "text is empty": (".jsonl", lines(row(text=""))),
    "text is space": (".jsonl", lines(row(text=" \t\n"))),
    "subset is unknown": (".jsonl", lines(row(subset="EDG"))),
    "subset is small": (".jsonl", lines(row(subset="edge"))),
    "subset is a list": (".jsonl", lines(row(subset=["EDGE"]))),
    "subset is an object": (".jsonl", lines(row(subset={"a": 1}))),
    "subset has escapes": (".jsonl", lines(row(subset="\x1b[31mEDGE\u202e"))),
    "label is unknown": (".jsonl", lines(row(subset=..., label="perhaps"))),
    "an id twice": (".jsonl", lines(GOOD, GOOD)),
    "an id twice, 0 and '0'": (".jsonl", lines(row(id=0), row(id="0"))),
    "id has a line break": (".jsonl", lines(row(id="a\nb"))),
    "id has a return": (".jsonl", lines(row(id="a\rb"))),
    "id has an escape": (".jsonl", lines(row(id="a\x1b[2J"), row(id="a\x1b[2J"))),
    "id has a zero": (".jsonl", lines(row(id="a\x00b"), row(id="a\x00b"))),
    "half a surrogate": (".jsonl", b'{"id": "a", "text": "\\ud800", "subset": "EDGE"}\n'),
    "half a surrogate in id": (".jsonl", b'{"id": "\\udfff", "text": "x", "subset": "EDGE"}\n'),
    "a pair of one": (".jsonl", lines(row(pair_id="p"))),
    "a pair of three": (
        ".jsonl",
        lines(
            *(row(id=i, pair_id="p", subset=s) for i, s in enumerate(["HARMFUL", *["EDGE"] * 2]))
        ),
    ),
    "a pair of the same": (".jsonl", lines(row(pair_id="p"), row(id="b", pair_id="p"))),
    "header alone": (".csv", b"id,text,subset\n"),
    "nothing": (".csv", b""),
    "no header": (".csv", b"a,How?,EDGE\nb,Why?,EDGE\n"),
    "too few columns": (".csv", b"id,text,subset\na,How?\n"),
    "too many columns": (".csv", b"id,text,subset\na,How?,EDGE,more\n"),
    "a column twice": (".csv", b"id,text,text,subset\na,x,y,EDGE\n"),
    "an open quote": (".csv", b'id,text,subset\na,"How?,EDGE\n'),
    "a quote inside": (".csv", b'id,text,subset\na,"How"?,EDGE\n'),
    "csv not utf-8": (".csv", b"id,text,subset\na,\xe9,EDGE\n"),
    "csv of zeros": (".csv", b"id,text,subset\n\x00\x00\n"),
    "a cell of 200 kB": (".csv", b"id,text,subset\na," + b"x" * 200_000 + b",EDGE\n"),
    "csv, no subset": (".csv", b"id,text\na,How?\n"),
    "csv, empty text": (".csv", b"id,text,subset\na,,EDGE\n"),
    "semicolons": (".csv", b"id;text;subset\na;How?;EDGE\n"),
    "another kind": (".txt", b"How?\n"),
    "a pickle": (".pt", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08"),
}

OPENINGS: dict[str, bytes] = {
    "empty": b"",
    "no json": b"x\n",
    "no prompt": lines({"challenging": True}),
    "prompt is text": lines({"prompt": "x", "challenging": True}),
    "text is a number": lines({"prompt": {"text": 3}, "challenging": True}),
    "text is empty": lines({"prompt": {"text": " "}, "challenging": True}),
    "not challenging": lines({"prompt": {"text": "x"}}),
    "challenging is a word": lines({"prompt": {"text": "x"}, "challenging": "yes"}),
    "split is unknown": lines({"prompt": {"text": "x"}, "challenging": True, "split": "test"}),
    "split is a list": lines({"prompt": {"text": "x"}, "challenging": True, "split": ["test"]}),
    "toxicity is a word": lines({"prompt": {"text": "x", "toxicity": "no"}, "challenging": False}),
    "toxicity is a list": lines({"prompt": {"text": "x", "toxicity": [1]}, "challenging": False}),
    "toxicity is nan": lines({"prompt": {"text": "x", "toxicity": "nan"}, "challenging": False}),
    "half a surrogate": b'{"prompt": {"text": "\\ud800"}, "challenging": true}\n',
    "id has a line break": lines({"prompt": {"text": "x"}, "challenging": True, "id": "a\nb"}),
    "an id twice": lines(*[{"prompt": {"text": "x"}, "challenging": True, "id": "a"}] * 2),
    "too few": lines({"prompt": {"text": "x"}, "challenging": True}),
    "not utf-8": b'{"prompt": {"text": "\xff"}, "challenging": true}\n',
}

LABELLED: dict[str, bytes] = {
    "empty": b"",
    "header alone": b"completion,final_label\n",
    "no completion": b"prompt,final_label\nx,1_full_compliance\n",
    "no label": b"completion\nx\n",
    "unknown label": b"completion,final_label\nx,perhaps\n",
    "empty label": b"completion,final_label\nx,\n",
    "a short row": b"completion,final_label\nx\n",
    "not utf-8": b"completion,final_label\n\xff,1_full_compliance\n",
    "zeros": b"\x00\x00\n",
    "a cell of 200 kB": b"completion,final_label\n" + b"x" * 200_000 + b",1_full_compliance\n",
    "unknown rater": (
        b"completion,final_label,annotation_1,annotation_2\nx,1_full_compliance,maybe,maybe\n"
    ),
}

RATED: dict[str, tuple[str, bytes]] = {
    "empty": (".jsonl", b""),
    "no text": (".csv", b"toxic\ntrue\n"),
    "no label": (".csv", b"comment\nx\n"),
    "perhaps": (".csv", b"comment,toxic\nx,perhaps\n"),
    "empty label": (".csv", b"comment,toxic\nx,\n"),
    "continuation is missing": (".jsonl", lines({"prompt": {"text": "x", "toxicity": 0.1}})),
    "rating is a word": (
        ".jsonl",
        lines({"prompt": {"text": "x", "toxicity": "no"}, "continuation": {"text": "y"}}),
    ),
    "rating is a list": (
        ".jsonl",
        lines({"prompt": {"text": "x", "toxicity": []}, "continuation": {"text": "y"}}),
    ),
    "nobody rated": (
        ".jsonl",
        lines({"prompt": {"text": "x", "toxicity": None}, "continuation": {"text": "y"}}),
    ),
    "another kind": (".txt", b"x"),
}

CONTRAST: dict[str, tuple[str, bytes]] = {
    "empty": (".jsonl", b""),
    "no replies": (".jsonl", lines({"prompt": "x"})),
    "one reply": (".jsonl", lines({"prompt": "x", "positive": "y"})),
    "the same": (".jsonl", lines({"prompt": "x", "positive": "y", "negative": "y"})),
    "a number": (".jsonl", lines({"prompt": "x", "positive": 3, "negative": "y"})),
    "no list": (".json", b'{"a": 1}'),
    "no objects": (".json", b"[1, 2]"),
    "no json": (".json", b"{"),
    "not utf-8": (".json", b'["\xff"]'),
    "empty list": (".json", b"[]"),
    "deep": (".json", b"[" * 100_000),
    "half a surrogate": (".json", b'[{"prompt": "\\ud800", "positive": "x", "negative": "y"}]'),
    "half a surrogate in a reply": (
        ".jsonl",
        b'{"prompt": "x", "positive": "\\udfff", "negative": "y"}\n',
    ),
    "a long number": (".jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n"),
}

RECIPES: dict[str, bytes] = {
    "empty": b"",
    "a tag": b"layer: !!python/object/apply:os.system ['touch tagged']\n",
    "a tag of ours": b"layer: !dial 3\n",
    "no time": b"seed: !!timestamp x\n",
    "no truth": b"seed: !!bool x\n",
    "no number": b"seed: !!int x\n",
    "no such day": b"seed: 2020-99-99\n",
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(20_000)),
    "holds itself": b"seed: &a [*a]\n",
    "a list": b"- layer\n",
    "a number": b"3\n",
    "unknown key": b"layre: 3\n",
    "tabs": b"layer:\t- 3\n\t- 4",
    "a nested value": b"layer: {a: 1}\n",
    "null": b"layer:\n",
    "a number as key": b"3: 4\n",
    "not utf-8": b"layer: \xff\n",
    "zeros": b"\x00\x00",
    "deep": b"[" * 400,
    "a wrong value": b"layer: twenty\n",
    "nan": b"alphas: [.nan, 1]\n",
    "inf": b"alphas: [.inf]\n",
    "another script": b"experiment: other\n",
    "experiment is a list": b"experiment: [a]\n",
    "published is a word": b"published: yes please\n",
    "a figure without a value": b"published: {figures: [{what: x}]}\n",
    "references": b"a: &a [x]\nlayer: *a\n",
    "where is a number": (b"published: {figures: [{what: x, value: 1, column: y, where: 3}]}\n"),
    "a study of aliases": b"a: &a [x]\npublished: {study: [*a, *a]}\n",
    "a long number": b"seed: 0x" + b"f" * 5000 + b"\n",
    "long numbers": b"layer: [1, 0x" + b"f" * 5000 + b"]\n",
    "half a surrogate": b'system: "\\ud800"\n',
    "a zero in a path": b'out: "a\\0b"\n',
    "half a surrogate in a path": b'out: "a\\ud800b"\n',
    "a date": b"layer: 2020-01-01\n",
}
