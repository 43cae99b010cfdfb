"""What imports what: the contract in pyproject.toml holds, and what must be light is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import refusal_dial

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refusal_dial"
HEAVY = {
    *("torch", "transformers", "transformer_lens", "datasets", "safetensors"),
    *("jaxtyping", "einops", "huggingface_hub", "tokenizers"),
}


def test_imports_point_down_and_no_room_has_a_cycle():
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# --- what is loaded in a fresh Python


def loaded_by(names: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing these modules, in a fresh Python."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout))


def test_plots_and_reports_never_wait_for_torch():
    names = ("run.folder", "stats.summary", "stats.trade_off", "data.prompts", "report.steering")
    loaded = loaded_by(["refusal_dial", *(f"refusal_dial.{name}" for name in names)])
    assert "pandas" in loaded
    assert not HEAVY & loaded


def test_help_waits_for_nothing_that_computes():
    slow = {"numpy", "pandas", "scipy", "plotly", "rich", "tqdm"}
    assert not (HEAVY | slow) & loaded_by(["refusal_dial", "refusal_dial.cli.flags"])


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


def test_the_architecture_names_every_file_of_every_room():
    """But for the report's, of which there is one a study."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = {path for path in (ROOT / "refusal_dial").rglob("*.py") if path.parent.name != "report"}
    names = {path.name for path in files if not path.name.startswith("__")}
    assert (
        sorted(name for name in names if f"`{name}`" not in page and f"/{name}`" not in page) == []
    )
