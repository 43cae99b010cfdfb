"""constraints.txt pins every package that `make` installs, and holds no index address."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def pinned() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.+!]+)(\s*;.*)?", line) for line in lines if line]
    assert all(pairs), "every line is name==version"
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """What this distribution asks for, and what that asks for, here."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        asked = distribution(name).requires or []
    except PackageNotFoundError:  # of an extra that is not installed
        return set()
    found = set()
    for requirement in map(Requirement, asked):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": e}) for e in (extras or {""})):
            continue
        known = canonicalize_name(requirement.name)
        found |= {known} | needed(known, frozenset(requirement.extras), seen)
    return found


def test_every_package_is_pinned():
    asked = needed("refusal-dial", frozenset({"dev"}), set()) - {"refusal-dial"}
    assert {"torch", "ray", "pytest", "markupsafe"} <= asked  # direct ones and those they bring
    assert not asked - set(pinned())


def test_no_index_is_named():
    assert not [line for line in CONSTRAINTS if line.startswith("-") or "://" in line]


def test_the_version_is_the_same_wherever_it_stands():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## ([\d.]+) - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert (newest[1], newest[2]) == (version, str(citation["date-released"]))
    assert citation["version"] == version


def test_the_workflow_runs_what_ci_runs():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == [
        ".ci/run"
    ]
