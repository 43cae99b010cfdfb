"""Imports point down: the floors of the house, and what may not be loaded on which of them.

A new module gets a line in FLOORS. It may import its own floor and those below, never one above,
and no two modules may import each other, not even by way of others or inside a function.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import refusal_dial

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refusal_dial"

FLOORS = {
    # words, files, figures, command lines: no torch
    "ground": """
        continuation.spared forecast live live.flags
        objectives objectives.flags objectives.front objectives.shown
        replies.layers replies.tables replies.plots replies.record
        values recipes quality replies replies.flags replies.summary replies.conditions
        types files hub rows prompts missing run run_log journal spreadsheets summary plots tables
        run_reading run_schema run_columns run_settings run_folder provenance
        examples help_text command_line cli cluster readers flags agreement rated trade_off
        trade_off_plot openings theme control_tokens
        figure_files direction_plots
        stats stats.intervals stats.p_values stats.effects comparison
        report report.reading report.prompt_texts report.verdicts report.dial report.summary_tables
        report.figures report.page
        continuation continuation.flags continuation.summary continuation.layers
        continuation.results continuation.tables continuation.plots
        patching patching.roles patching.flags patching.summary patching.tables patching.plots
        replay
        selection selection.limits selection.flags selection.rules selection.tables
        calibration calibration.flags calibration.uniform calibration.tables
        verify verify.flags verify.claims verify.table verify.evidence verify.harm verify.shown
        verify.page
        calibration.coverage calibration.contradiction
    """,
    # arithmetic on tensors, and on texts: knows no model
    "tensors": """
        subspaces control_vectors calibration.gaussian
        operations hooks conditional scorers directions controls judging judges
        checkpoint blueprint devices
        replay.branches replay.bulk row_hooks
    """,
    # touches the model
    "model": """
        likelihood direction_files
        model tokens fits activations engine sampling cached generate classifiers judge_model
        toxicity validation doctor
        replay.bare replay.recording replay.plan replay.rectangles replay.stream replay.grid
        selection.candidates selection.layout weights
        replay.trial replay.memory replay.finals patching.pairs patching.places patching.sides
    """,
    # puts a question to it
    "questions": """
        continuation.sparing probe live.dial live.page
        objectives.opened objectives.cells objectives.measured objectives.job
        replies.contrasting replies.job
        spoken strengths contrast replies.opened replies.cells replies.judged
        study sweep workers executors steering conditioning job
        continuation.opened continuation.cells continuation.spoken continuation.job
        selection.measures selection.job calibration.nulls calibration.job
        verify.opened verify.measures verify.stability verify.limits verify.job
        patching.exact patching.controls patching.rows patching.job patching.attribution
    """,
}
ORDER = list(FLOORS)
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
HEAVY = {
    *("torch", "transformers", "transformer_lens", "datasets", "safetensors"),
    *("jaxtyping", "einops", "huggingface_hub", "tokenizers"),
}
OUTSIDE = {"", "organism"}  # the front door, which loads names when asked; a package of its own


@cache
def modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package; the package itself is ''."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path, name: str, package: Path, lazy: bool = True) -> Iterator[str]:
    """Dotted names that a module imports, ours without the package's name in front of a dot.

    `refusal_dial.run` -> `.run`, `torch.nn` -> `torch.nn`. With `lazy`, those inside functions too.
    """
    known = modules(package)
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if lazy else list(at_import(tree.body))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                yield f".{rest}" if head == package.name else alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative: from . import x
                inside = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                above = inside[: len(inside) - node.level + 1]
                source = ".".join([package.name, *above, *filter(None, [source])])
            head, _, rest = source.partition(".")
            if head != package.name:
                yield source
                continue
            for alias in node.names:
                below = f"{rest}.{alias.name}".lstrip(".")
                yield f".{below if below in known else rest}"


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            blocks = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            for block in blocks:
                yield from at_import(block)


def floor(name: str, floor_of: dict[str, str]) -> str | None:
    """A module's own floor, or that of the package it is in."""
    return floor_of.get(name) or floor_of.get(name.split(".")[0])


def faults(package: Path, floor_of: dict[str, str]) -> list[str]:
    """Everything about the imports of a package that the house does not allow."""
    found = []
    for name, path in modules(package).items():
        if name.split(".")[0] in OUTSIDE:
            continue
        own = floor(name, floor_of)
        if own is None:
            found.append(f"{name} is on no floor: give it a line in FLOORS")
            continue
        for other in sorted(set(imports(path, name, package))):
            if not other.startswith("."):
                continue
            if other[1:].split(".")[0] in OUTSIDE:
                found.append(f"{name} imports {other}")
                continue
            their = floor(other[1:], floor_of) or "ground"
            if ORDER.index(their) > ORDER.index(own):
                found.append(f"{name} ({own}) imports {other[1:]} ({their})")
        if own == "ground":
            eager = {other.split(".")[0] for other in imports(path, name, package, lazy=False)}
            found += [f"{name} (ground) waits for {heavy}" for heavy in sorted(eager & HEAVY)]
    return found


def cycles(package: Path) -> list[str]:
    graph = {
        name: {o[1:] for o in imports(path, name, package) if o.startswith(".")} - {"", name}
        for name, path in modules(package).items()
        if name
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def test_imports_point_down():
    assert faults(PACKAGE, FLOOR) == []


def test_no_module_imports_itself_by_way_of_others():
    assert cycles(PACKAGE) == []


def test_a_module_stands_on_one_floor():
    listed = [module for names in FLOORS.values() for module in names.split()]
    assert len(listed) == len(set(listed))


def test_the_organism_knows_nothing_of_the_library_but_its_words():
    allowed = {".types", "."}
    for name, path in modules(PACKAGE).items():
        if name.split(".")[0] == "organism":
            for other in imports(path, name, PACKAGE):
                if other.startswith(".") and not other.startswith(".organism"):
                    assert other in allowed, f"{name} imports {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_an_experiment_starts_on_the_ground(path):
    for other in imports(path, path.stem, PACKAGE, lazy=False):
        assert other.split(".")[0] not in HEAVY
        if other.startswith("."):
            assert floor(other[1:], FLOOR) == "ground"


# --- the guard itself: each fault is found in a small house that has it


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"types": "", "hooks": "from house.types import x"}, None),
        ({"types": "", "hooks": "import house.types"}, None),
        ({"types": "def f():\n    import torch"}, None),
        ({"types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}, None),
        ({"hooks": "import torch"}, None),
        ({"mystery": ""}, "mystery is on no floor"),
        ({"types": "from house.hooks import x", "hooks": ""}, "types (ground) imports hooks (te"),
        ({"types": "from house import hooks", "hooks": ""}, "types (ground) imports hooks"),
        ({"types": "import house.hooks", "hooks": ""}, "types (ground) imports hooks"),
        ({"types": "from . import hooks", "hooks": ""}, "types (ground) imports hooks"),
        ({"types": "from .hooks import x", "hooks": ""}, "types (ground) imports hooks"),
        ({"hooks": "def f():\n    from house.model import x", "model": ""}, "imports model (model"),
        ({"model": "from house.study import x", "study": ""}, "model (model) imports study (qu"),
        ({"types": "import torch"}, "types (ground) waits for torch"),
        ({"types": "from torch.nn import Linear"}, "types (ground) waits for torch"),
        ({"types": "try:\n    import torch\nexcept ImportError: ..."}, "waits for torch"),
        ({"types": "if True:\n    import transformers"}, "waits for transformers"),
        ({"hooks": "from house.organism import x", "organism/__init__": ""}, "imports .organism"),
        ({"hooks": "from house import x", "__init__": "x = 1"}, "hooks imports ."),
        (
            {"judging/__init__": "", "judging/a": "from house.model import x", "model": ""},
            "judging.a",
        ),
    ],
)
def test_the_guard_sees(files, fault, tmp_path):
    house = build(tmp_path, files)
    found = faults(house, FLOOR)
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0]), found


@pytest.mark.parametrize(
    ("files", "cycle"),
    [
        ({"a": "from house import b", "b": "from house.c import x", "c": ""}, None),
        ({"a": "from house import b", "b": "def f():\n    import house.a"}, "a"),
        ({"a": "from house.b import x", "b": "from .c import y", "c": "from . import a"}, "a"),
        ({"p/__init__": "from house.p.q import x", "p/q": "from house.p import x"}, "p"),
        ({"p/__init__": "from house.p.q import x", "p/q": "from . import r", "p/r": ""}, None),
    ],
)
def test_the_guard_sees_a_cycle(files, cycle, tmp_path):
    found = cycles(build(tmp_path, files))
    assert (found == []) if cycle is None else (len(found) == 1 and cycle in found[0]), found


def build(folder: Path, files: dict[str, str]) -> Path:
    house = folder / "house"
    for name, source in {"__init__": "", **files}.items():
        path = house / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return house


# --- what is loaded in a fresh Python


def loaded_by(names: list[str]) -> list[str]:
    """Top-level packages in sys.modules after importing these modules, in a fresh Python."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout)


def test_the_ground_floor_loads_without_torch():
    present = FLOORS["ground"].split()
    loaded = loaded_by(["refusal_dial", *(f"refusal_dial.{name}" for name in present)])
    assert "refusal_dial" in loaded
    assert not HEAVY & set(loaded)


def test_help_waits_for_nothing_that_computes():
    names = ["refusal_dial", "refusal_dial.types", "refusal_dial.cli", "refusal_dial.flags"]
    slow = {"numpy", "pandas", "scipy", "plotly", "rich", "tqdm"}
    assert not (HEAVY | slow) & set(loaded_by(names))


# --- the front door


def test_every_name_at_the_front_door_opens():
    for name in refusal_dial.__all__:
        assert getattr(refusal_dial, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'steeer'"):
        refusal_dial.steeer  # noqa: B018


def test_what_type_checkers_see_at_the_front_door_is_what_is_there():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refusal_dial.")
        for alias in node.names
    }
    homes = {name: f"refusal_dial.{home}" for name, home in refusal_dial._HOMES.items()}
    assert seen == homes
