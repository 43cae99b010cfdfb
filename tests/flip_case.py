"""Files damaged at random: for every loader a good file, and what it makes of it when bytes are
flipped, cut away, doubled or put in."""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from test_control_vectors import gguf

from refusal_dial import directions
from refusal_dial.cli.recipes import load_recipe
from refusal_dial.common import DialError
from refusal_dial.data.contrast import load_contrast
from refusal_dial.data.openings import load_openings
from refusal_dial.data.prompts import load_prompts
from refusal_dial.directions import files as control_vectors
from refusal_dial.directions import files as direction_files
from refusal_dial.directions.learning import Direction, Provenance
from refusal_dial.model import checkpoint
from refusal_dial.model.checkpoint import check_folder
from refusal_dial.run import folder as run_folder
from refusal_dial.run.folder import read_config, read_table, read_verdict
from refusal_dial.scoring.agreement import load_labelled
from refusal_dial.scoring.ratings import load_rated
from refusal_dial.studies.selection import read_evaluations

PUT_IN = [
    b"NaN",
    b"-1",
    b"9" * 30,
    b"\xff",
    b"\x00",
    b'"',
    b",",
    b"\n",
    b"[" * 50,
    b"1e999",
    b"null",
]
PUT_IN += [
    b"\xed\xa0\x80",
    b"\\ud800",
    b"{",
    b"}",
    b"]",
    b"true",
    b"0x1",
    b"!!python/name:os.system ",
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to three kinds of damage; often a single bit alone."""
    out = bytearray(data)
    if rng.random() < 0.4:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        near = min(end, at + rng.randint(0, 8))
        match rng.randrange(6):
            case 0:
                out[at:near] = bytes(byte ^ 1 << rng.randrange(8) for byte in out[at:near])
            case 1:
                out[at:near] = rng.randbytes(near - at)
            case 2:
                del out[at:near]
            case 3:
                del out[at:]
            case 4:
                out[at:at] = out[at:end]
            case _:
                out[at:at] = rng.choice(PUT_IN)
    return bytes(out)


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(*rows: dict[str, Any]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def pickled(found: object) -> bytes:
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


def unit(width: int = 16) -> torch.Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return vector / vector.norm()


def ours(folder: Path) -> bytes:
    about = Provenance(3, "resid_pre", -1, "mean_diff", "org/m", "abc", 0, ("a", "b"), "0f")
    directions.save(Direction(unit(), 2.0, about), folder / "ours.safetensors")
    return (folder / "ours.safetensors").read_bytes()


def control_vector() -> bytes:
    return gguf({f"direction.{i + 1}": unit().numpy() for i in range(2)}, alignment=32)


PROMPT = {"id": "a", "text": "How do I?", "subset": "EDGE"}
RATED = {"prompt": {"text": "You", "toxicity": 0.2}, "continuation": {"text": "!", "toxicity": 0.9}}
OPENING = {"prompt": {"text": "So", "toxicity": 0.2}, "challenging": True}
LABELLED = {"prompt": "x", "completion": "No.", "final_label": "2_full_refusal"}
CONTRAST = {"prompt": "x", "positive": "y", "negative": "z"}
EVALUATION = {"position": -1, "layer": 1, "refusal_score": 0.5, "steering_score": 1.5}
EVALUATION |= {"kl_div_score": 0.1}
RUN = {"experiment": "x", "settings": {"seed": 0, "model": {"name": "m"}}, "started": "now"}
SCORES = {"run_id": "r", "prompt_id": "a", "layer": 1, "alpha": 0.5, "score": -0.25, "reason": ""}
HEADER = {"model.norm.weight": torch.ones(8), "lm_head.weight": torch.ones(8, 4)}
LAYERS = {f"layer_{i}": unit() for i in range(3)}

Loader = tuple[str, Callable[[Path], bytes], Callable[[Path], Any]]


def same(data: bytes) -> Callable[[Path], bytes]:
    return lambda folder: data


def journalled(folder: Path) -> bytes:
    """The journal of a table of two batches."""
    place = folder / "scores.csv"
    place.write_bytes(b"")
    for batch in (table(SCORES), b"r,b,1,0.5,0.125,\n"):
        with place.open("ab") as file:
            file.write(batch)
        run_folder.record_batch(place, "key", batch, 1)
    return (folder / "journal.txt").read_bytes()


HEAD = len(table(SCORES))
WHOLE = (run_folder.Batch(0, HEAD, 1), run_folder.Batch(HEAD, HEAD + 18, 1))


def kept(path: Path) -> Any:
    found = run_folder.trusted_batches(path.with_name("scores.csv"), "key")
    assert found.batches == WHOLE[: len(found.batches)]
    return found.batches


LOADERS: dict[str, Loader] = {
    "direction": ("ours.safetensors", ours, directions.load),
    "direction, any": ("ours.safetensors", ours, lambda p: direction_files.read_direction(p, 1)),
    "direction, theirs": (
        "d.safetensors",
        same(save({"v": unit()})),
        lambda p: direction_files.read_direction(p, 1),
    ),
    "direction, a layer each": (
        "d.safetensors",
        same(save(LAYERS)),
        lambda p: direction_files.read_direction(p, 1),
    ),
    "direction, .pt": (
        "d.pt",
        same(pickled(unit())),
        lambda p: direction_files.read_direction(p, 1),
    ),
    "direction, .pt of layers": (
        "d.pt",
        same(pickled(LAYERS)),
        lambda p: direction_files.read_direction(p, 1),
    ),
    "direction, .gguf": (
        "d.gguf",
        same(control_vector()),
        lambda p: direction_files.read_direction(p, 1),
    ),
    "direction, metadata beside": (
        "direction_metadata.json",
        lambda f: (f / "direction.pt").write_bytes(pickled(unit())) and b'{"pos": -1, "layer": 1}',
        lambda p: direction_files.read_direction(p.with_name("direction.pt")),
    ),
    "control vectors": ("d.gguf", same(control_vector()), control_vectors.read_control_vectors),
    "prompts, .jsonl": (
        "p.jsonl",
        same(jsonl(PROMPT, {**PROMPT, "id": "b", "pair_id": None, "category": "é"})),
        lambda p: load_prompts(str(p)),
    ),
    "prompts, .csv": (
        "p.csv",
        same(table(PROMPT, {**PROMPT, "id": "b", "text": 'a "b", c\nd'})),
        lambda p: load_prompts(str(p)),
    ),
    "openings": (
        "o.jsonl",
        same(jsonl(OPENING, {**OPENING, "challenging": False})),
        lambda p: load_openings(str(p), 1, 0),
    ),
    "rated, .jsonl": ("r.jsonl", same(jsonl(RATED, RATED)), load_rated),
    "rated, .csv": (
        "r.csv",
        same(table({"comment": "x", "toxic": "true"}, {"comment": "y", "toxic": "false"})),
        load_rated,
    ),
    "labelled": ("l.csv", same(table(LABELLED, LABELLED)), load_labelled),
    "contrast, .jsonl": ("c.jsonl", same(jsonl(CONTRAST)), lambda p: load_contrast(str(p))),
    "contrast, .json": (
        "c.json",
        same(json.dumps([CONTRAST, CONTRAST]).encode()),
        lambda p: load_contrast(str(p)),
    ),
    "contrast, .csv": ("c.csv", same(table(CONTRAST)), lambda p: load_contrast(str(p))),
    "recipe": (
        "r.yaml",
        same((Path(__file__).parents[1] / "configs" / "phi4_mini_toxicity.yaml").read_bytes()),
        lambda p: load_recipe(str(p)),
    ),
    "evaluations": (
        "direction_evaluations.json",
        same(json.dumps([EVALUATION, EVALUATION]).encode()),
        read_evaluations,
    ),
    "run's config": (
        "config.json",
        same(json.dumps(RUN).encode()),
        lambda p: read_config(p.parent),
    ),
    "run's scores": (
        "scores.csv",
        lambda f: (
            (f / "config.json").write_text(json.dumps(RUN))
            and table(SCORES, {**SCORES, "score": "", "reason": "NaN"})
        ),
        lambda p: read_table(p.parent, "scores"),
    ),
    "run's verdict": (
        "summary.json",
        same(b'{"verdict": "holds", "gap": {"value": 0.5, "n": 3}, "rows": 3}'),
        lambda p: read_verdict(p.parent),
    ),
    "journal": ("journal.txt", journalled, kept),
    "model's header": (
        "model.safetensors",
        same(save(HEADER)),
        lambda p: checkpoint.parameters(p.parent),
    ),
    "model's index": (
        "model.safetensors.index.json",
        same(b'{"metadata": {"total_size": 9}, "weight_map": {"a": "b", "c": "d"}}'),
        lambda p: checkpoint.missing_shards(p.parent),
    ),
    "model's sizes": (
        "config.json",
        same(b'{"vocab_size": 32, "hidden_size": 8, "text_config": {"num_hidden_layers": 2}}'),
        lambda p: check_folder(p.parent, "m"),
    ),
    "number formats": (
        "model.safetensors",
        lambda f: (f / "config.json").write_text('{"dtype": "float32"}') and save(HEADER),
        lambda p: checkpoint.check_numbers(p.parent, "m"),
    ),
}


def as_text(found: Any) -> str:
    """All that was read, as text."""
    if isinstance(found, Direction):
        return repr((found.unit.tolist(), found.norm, found.provenance))
    if isinstance(found, pd.DataFrame):
        return str(found.to_json(orient="split", double_precision=15))
    return repr({k: v.tolist() for k, v in found.items()} if is_tensors(found) else found)


def is_tensors(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(v, torch.Tensor) for v in found.values())


def outcomes(name: str, folder: Path, cases: int, seed: int = 0) -> Counter[str]:
    """How often a loader refused damage in one line, read the same all the same, or read something
    else; whatever else was raised, by its kind."""
    file, write, load = LOADERS[name]
    good = write(folder)
    path = folder / file
    path.write_bytes(good)
    whole = as_text(load(path))
    rng, found = random.Random(f"{seed} {name}"), Counter[str]()
    for _ in range(cases):
        path.write_bytes(damaged(good, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found["the same" if as_text(load(path)) == whole else "otherwise"] += 1
            except DialError as error:
                found["two lines" if "\n" in str(error) else "refused"] += 1
            except Exception as error:
                found[f"{type(error).__name__}: {str(error)[:90]}"] += 1
    return found


if __name__ == "__main__":
    total: Counter[str] = Counter()
    for name in LOADERS:
        with TemporaryDirectory() as folder:
            found = outcomes(name, Path(folder), int(sys.argv[1]))
        total += found
        print(f"{name:28}", dict(found), flush=True)
    print(f"{'all':28}", dict(total))
