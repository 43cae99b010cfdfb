"""A chat template filled in once, in a process of its own that has little time and memory.

    python -I render_alone.py SECONDS BYTES < {"template": ..., "values": ...}

A template is a program that came with a model. One step of it may take hours or all memory
(`9 ** (9 ** 9)`, a text of gigabytes), and no thread can stop such a step: the operating system
stops this process. Ends with 0 where the template ended or failed by itself, which whoever fills it
in next will see; anything else means that it was stopped.
"""

from __future__ import annotations

import json
import re
import sys

TRACKED = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""A tag of transformers' own, which marks text and writes none."""

STOPPED = 3


def check() -> int:
    limit(int(sys.argv[1]), int(sys.argv[2]))
    given = json.load(sys.stdin)
    try:
        render(given["template"], given["values"])
    except MemoryError:
        return STOPPED
    except Exception:
        return 0
    return 0


def limit(seconds: int, size: int) -> None:
    """Seconds of CPU, so that a busy machine stops nobody, and bytes. Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def render(template: str, values: dict[str, object]) -> str:
    """As transformers fills it in."""
    from datetime import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(TRACKED.sub("", template)).render(**values)


if __name__ == "__main__":
    sys.exit(check())
