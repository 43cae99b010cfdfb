"""Every command and every Python block of the README, and the commands of the pages on experiments
and benchmarks, executed.

Commands run in this process, in the README's order, so that a plot finds the run which a command
before it left. Where the README's own model and sizes would take minutes the same command is given
a tiny random model and few prompts: what is tested is that it is a command that works. What `make`
runs for a target is read from the Makefile; setting up is what a clean clone is for.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from script_case import load
from small_runs import TYPED, small_run

from refusal_dial.cli.command_line import parse_flags
from refusal_dial.data.prompts import load_prompts
from refusal_dial.report.theme import found_browser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("experiments", "benchmarks")]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
ELSEWHERE = {
    "python scripts/train_embedded_model.py": "under an hour; test_organism trains a small one",
    "python scripts/dial.py": "serves a page until it is stopped; test_live has what it serves",
}

# The main job is on the embedded model, for the README's Python and its picture read its run. Every
# other experiment is run small (`small_runs`), and its command in the README is parsed.
MAIN = "steering_holdout_control"
SMALL = {
    MAIN: "--prompts=FEW --alphas=-8,8 --alpha-unit=absolute --controls=holdout,random "
    "--n-random=1 --device=cpu",
    "export_model": "--model=TINY --out=exported",
    "export_direction": "--model=TINY --prompts=FEW --layer=2 --out=exported.gguf",
    "doctor": "--model=embedded",
    "sweeps": "--rounds=1 --batch=2 --threads=1",
    "generation": "--rounds=1 --prompts=1 --alphas=2 --new=3 --threads=1",
}


def of_make(target: str) -> list[str]:
    """The `python ...` lines that make runs for a target."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", MAKEFILE, re.M)
    assert recipe, f"the Makefile has no target {target}"
    lines = recipe[1]
    for name, value in re.findall(r"^(\w+) :?\??= ?(.*)$", MAKEFILE, re.M):
        lines = lines.replace(f"$({name})", value)
    return re.findall(r"(?<=\.venv/bin/)python .*", lines)


def commands() -> list[str]:
    """Every `python ...` of the README in its order: lines of blocks, those of `make` among them,
    and code in tables and sentences."""
    found: list[str] = []
    fenced, whole = False, "\n".join([README, *PAGES]).replace("\\\n", " ")
    for part in re.split(r"^(```\w*\n)", whole, flags=re.M):
        if part.startswith("```"):
            fenced = not fenced
            continue
        for code in part.splitlines() if fenced else re.findall(r"`([^`]+)`", part):
            if code.startswith("python "):
                found.append(code)
            elif fenced and (made := re.match(r"(?:make|refusal-dial) (demo|bench)\b", code)):
                found += of_make(made[1])
    return list(dict.fromkeys(" ".join(one.split()) for one in found))


def reduced(command: str, places: dict[str, str]) -> tuple[Path, list[str]]:
    """The script and its arguments, with its small flags in place of the README's."""
    _, script, *arguments = shlex.split(command)
    path = ROOT / script
    small = shlex.split(SMALL.get(path.stem, ""))
    for name, place in places.items():
        small = [one.replace(name, place) for one in small]
        arguments = [one.replace(name, place) for one in arguments]
    given = dict(one.partition("=")[::2] for one in small)
    kept, rest = [], list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            kept.append(token)
            continue
        name, equals, value = token.partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if name not in given:
            kept.append(f"{name}={value}" if value else name)
    return path, [*kept, *(f"{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def places(small_material, tmp_path_factory):
    """What the names in SMALL and in the README's commands stand for, and a folder with the runs
    that its commands leave."""
    folder = tmp_path_factory.mktemp("readme")
    few = [asdict(one) | {"pair_id": None} for one in load_prompts("embedded")[::12]]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    for name in TYPED:
        if name != MAIN:
            shutil.copytree(small_run(small_material, name).folder, folder / "runs" / name / "0")
    return {
        "FEW": str(folder / "few.jsonl"),
        "TINY": str(small_material.model),
        "HERE": str(folder),
    }


def test_the_readme_is_read_whole():
    assert len(commands()) > 30
    scripts = {shlex.split(command)[1] for command in commands()}
    assert [one for one in scripts if not (ROOT / one).is_file()] == []
    experiments = {f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.py")}
    assert sorted(experiments - scripts) == [], "experiments that the README does not name"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c not in ELSEWHERE])
def test_a_command_of_the_readme_works(command, places, monkeypatch, capsys):
    monkeypatch.chdir(places["HERE"])
    learned = sorted(Path("runs").glob("steering_balanced/*/direction.safetensors"))
    known = places | {"DIRECTION.safetensors": str(learned[-1]) if learned else ""}
    path, argv = reduced(command, known)
    if path.stem == "validate_judge" and not (ROOT.parent / "shared").is_dir():
        pytest.skip("no labelled files beside the project")
    if path.stem == "picture_of_the_dial":
        pytest.importorskip("playwright", reason="playwright is not installed")
        if found_browser() is None:
            pytest.skip("no Chrome or Chromium is installed: apt install chromium")
    if path.parent.name == "benchmarks":
        time_it(path, argv, monkeypatch)
    else:
        module = load(path.stem)
        flags = parse_flags(get_type_hints(module.main)["flags"], argv, module.main)
        if path.stem in TYPED and not (path.stem == MAIN and "--model" not in command):
            return  # its small run is in `places`
        module.main(flags)
    assert capsys.readouterr().out


def time_it(path: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark as its command runs it; it sets the number of threads and hides the bars."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *argv])
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(places, monkeypatch, capsys):
    """On the run that the README's first command leaves."""
    monkeypatch.chdir(places["HERE"])
    names: dict[str, object] = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert len(names["grid"]) == 3
    replies = capsys.readouterr().out.splitlines()
    assert replies[1] == "Sure, let us look at the meaning of perjury in a contract."  # unsteered
    assert len(replies) == 3


def test_eight_lines_and_their_three_replies_stand_on_the_first_screen():
    (block,) = [block for language, block in BLOCKS if language == "python"]
    assert len([line for line in block.splitlines() if line]) == 8
    shown = re.findall(r"^\| ([−0+]) \| (.*) \|$", README, re.M)
    assert [sign for sign, _ in shown] == ["−", "0", "+"]
    assert shown[1][1] == "Sure, let us look at the meaning of perjury in a contract."
    assert shown[2][1].startswith("I can't assist with that.")


def test_what_is_said_of_every_experiments_flags_is_true():
    said = PAGES[0].split("- Where the question")[0]
    every, but = said.split("- Every experiment but `validate_judge.py`")
    for path in sorted((ROOT / "experiments").glob("*.py")):
        flags = {f"--{one.name}" for one in fields(get_type_hints(load(path.stem).main)["flags"])}
        named = re.findall(r"`(--[a-z-]+)`", every + (but if path.stem != "validate_judge" else ""))
        assert {one.replace("-", "_") for one in named} - {"__help"} <= {
            one.replace("-", "_") for one in flags
        }, path.name


def test_badges_say_what_the_project_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f"Python: {' | '.join(versions)}" in (ROOT / "docs/figures/badge_python.svg").read_text()
    assert (ROOT / "LICENSE").read_text().startswith("MIT")


def test_every_make_target_is_there():
    fenced, text = "\n".join(block for _, block in BLOCKS), "\n".join([README, *PAGES])
    named = {*re.findall(r"^make (\w+)", fenced, re.M), *re.findall(r"`make (\w+)`", text)}
    assert {"demo", "test", "check", "bench"} <= named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).exists()


def test_pictures_are_here_and_small_enough_for_a_page():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) == 4
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 150_000
