"""refusal_dial: find, steer and test behaviour directions in language models.

prompts -> model -> scores -> direction -> hooks -> sweep -> run -> plot. Names are imported when
first used, so that `--help` and plotting never wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusal_dial.activations import collect as collect
    from refusal_dial.conditional import calibrate as calibrate
    from refusal_dial.conditional import steer_if as steer_if
    from refusal_dial.directions import Direction as Direction
    from refusal_dial.hooks import ablate as ablate
    from refusal_dial.hooks import clamp as clamp
    from refusal_dial.hooks import patch as patch
    from refusal_dial.hooks import steer as steer
    from refusal_dial.model import load_model as load_model
    from refusal_dial.prompts import load_prompts as load_prompts
    from refusal_dial.tokens import tokenize as tokenize
    from refusal_dial.types import DialError as DialError

__version__ = "0.1.0"

_HOMES = {
    "collect": "activations",
    "calibrate": "conditional",
    "Direction": "directions",
    "ablate": "hooks",
    "clamp": "hooks",
    "patch": "hooks",
    "steer": "hooks",
    "steer_if": "conditional",
    "load_model": "model",
    "tokenize": "tokens",
    "load_prompts": "prompts",
    "DialError": "types",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
