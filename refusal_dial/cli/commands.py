"""`refusal-dial`: every experiment, figure and page as one command, from any folder.

    refusal-dial demo                                 the first question, then its report
    refusal-dial run EXPERIMENT [flags]               experiments/EXPERIMENT.py
    refusal-dial plot FIGURE RUN [flags]              scripts/plot_FIGURE.py
    refusal-dial export DIRECTION --to gguf|svec|...  scripts/export_direction.py
    refusal-dial report|doctor|dial|... [arguments]   scripts/COMMAND.py

A command runs the script of that name as `python` would, with its own flags, help and guard. The
scripts are those of the checkout, or the copies of them that an installed wheel carries.
"""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from refusal_dial.common import DialError, one_of

PACKAGE = Path(__file__).parents[1]

DEMO = "steering_holdout_control"

SHORTER = {"export-direction": "export"}
"""What a script's own name is called as a command; its own name is understood too."""

COMPLETION = """\
_refusal_dial() {
  COMPREPLY=($(refusal-dial --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _refusal_dial refusal-dial
"""


def folder(name: str) -> Path:
    """`experiments` or `scripts`: of the checkout that the package lies in, else of the wheel."""
    for place in (PACKAGE.parent / name, PACKAGE / name):
        if (place / ("report.py" if name == "scripts" else f"{DEMO}.py")).is_file():
            return place
    raise DialError(f"this installation has no {name}: install the package again, from its wheel")


def scripts() -> dict[str, Path]:
    """Every command with its script: `run NAME`, `plot NAME`, or the script's name alone."""
    found = {f"run {path.stem}": path for path in sorted(folder("experiments").glob("*.py"))}
    for path in sorted(folder("scripts").glob("*.py")):
        plot = path.stem.removeprefix("plot_")
        name = f"plot {plot}" if plot != path.stem else path.stem.replace("_", "-")
        found[SHORTER.get(name, name)] = path
    return found


def script_of(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The script that a command line means, and what is left for it. Raises `DialError`."""
    known, (first, *rest) = scripts(), words
    first = SHORTER.get(first, first)
    if first in ("run", "plot"):
        names = [name.split()[1] for name in known if name.startswith(f"{first} ")]
        if not rest or rest[0].startswith("-"):
            raise DialError(f"refusal-dial {first} needs one of {', '.join(names)}")
        name = rest[0].removesuffix(".py").replace("-", "_")
        if name not in names:
            raise one_of(rest[0], names, "experiment" if first == "run" else "figure")
        return known[f"{first} {name}"], list(rest[1:])
    commands = [name for name in known if " " not in name]
    if first not in commands:
        raise one_of(first, ["demo", "run", "plot", *commands], "command")
    return known[first], list(rest)


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """The script as `python PATH ARGUMENTS` runs it; it exits as it would there."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of a command line (`sys.argv` by default). Exits with 2 for one that is not
    known."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(overview())
        elif words[0] == "--completion":
            print(COMPLETION, end="")
        elif words[0] == "--complete":
            print("\n".join(candidates(words[1:])))
        elif words[0] == "demo":
            run_script(*script_of(["run", DEMO, *words[1:]]))
            run_script(*script_of(["report", f"runs/{DEMO}"]))
        else:
            run_script(*script_of(words))
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except DialError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def overview() -> str:
    """All commands, a line each: the question that the script's docstring begins with."""
    width = shutil.get_terminal_size().columns
    lines = [(__doc__ or "").strip(), "", "Commands:", ""]
    for name, path in {"demo": folder("experiments") / f"{DEMO}.py", **scripts()}.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = f"  {name:36} {' '.join(text.split(chr(10) * 2)[0].split())}"
        lines.append(line if len(line) <= width else f"{line[: max(width - 1, 40)]}…")
    lines += ["", 'Tab-completion in bash: eval "$(refusal-dial --completion)"']
    return "\n".join(lines)


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand for the last of these words: commands, names, or the script's flags."""
    *before, last = words or [""]
    known = scripts()
    if not before:
        offered = ["demo", "run", "plot", *(name for name in known if " " not in name)]
    elif len(before) == 1 and before[0] in ("run", "plot"):
        offered = [n.split()[1] for n in known if n.startswith(f"{before[0]} ")]
    else:
        path, _ = script_of(["run", DEMO] if before[0] == "demo" else before)
        flags = get_type_hints(runpy.run_path(str(path))["main"])["flags"]
        offered = [f"--{field.name.replace('_', '-')}" for field in fields(flags)]
    return [one for one in offered if one.startswith(last)]
