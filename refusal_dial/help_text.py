"""What Fire says of a script's flags: its help screen, and a script for tab-completion.

Both are written from the flags' dataclass fields (see `cli.flag`). It reads no command line.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from refusal_dial.types import one_of


def completion(known: Mapping[str, Field[Any]], shell: str = "bash") -> str:
    """Fire's completion script for the script that runs, started by its name or path. Fire's own
    offers nothing after a path or a value, which it takes for commands that it does not know; here
    there is one command."""
    from fire.completion import Script

    if shell not in ("bash", "fish"):
        raise one_of(shell, ("bash", "fish"), "shell")
    name = Path(sys.argv[0]).name
    return str(Script(name, _shown(known), shell=shell)).replace(f"    {name})\n", "    *)\n")


def help_screen(main: Callable[..., object], known: Mapping[str, Field[Any]]) -> str:
    """Fire's help screen for the flags, spelt as errors and documents spell them."""
    from fire.helptext import HelpText
    from fire.trace import FireTrace

    shown = _shown(known)
    about = inspect.getdoc(main) or inspect.getdoc(sys.modules.get(main.__module__)) or ""
    lines = "\n".join(f"    {name}: {f.metadata['help']}" for name, f in known.items())
    about += "\n\n--debug, besides the flags below, shows the traceback of an error."
    shown.__doc__ = f"{about}\n\nArgs:\n{lines}"
    screen = str(HelpText(shown, trace=FireTrace(shown, name=Path(sys.argv[0]).name)))
    screen = re.sub(r"\n *Type: Optional\[\]", "", screen)
    screen = re.sub(  # Fire cuts long defaults short
        r"^( +.*--(\w+)=\S+\n +)De?f?a?u?l?t?[.:].*$",
        lambda found: f"{found[1]}Default: {_typed(known[found[2]].default)}",
        screen,
        flags=re.MULTILINE,
    )
    screen = screen.replace("-h, --", "--")  # -h is help
    return re.sub(r"--[a-z]\w*", lambda name: name[0].replace("_", "-"), screen)


def _typed(default: Any) -> str:
    """A default as one would type it."""
    if default is None or default == ():
        return "not given"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(_typed, default)) if isinstance(default, tuple) else f"{default}"


def _shown(known: Mapping[str, Field[Any]]) -> Callable[[], None]:
    """A function with these flags as its arguments, for Fire to describe."""

    def shown() -> None: ...

    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    shown.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, kinds[1])
            if f.default is MISSING
            else inspect.Parameter(name, kinds[0], default=f.default)
            for name, f in sorted(known.items(), key=lambda one: one[1].default is not MISSING)
        ]
    )
    return shown
