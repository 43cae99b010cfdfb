"""refusal_dial: find, steer and test behaviour directions in language models.

prompts -> model -> scores -> direction -> hooks -> plan -> run -> report. Names are imported when
first used, so that `--help` and plotting never wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusal_dial.common import DialError as DialError
    from refusal_dial.data.prompts import load_prompts as load_prompts
    from refusal_dial.directions.learning import Direction as Direction
    from refusal_dial.hooks import ablate as ablate
    from refusal_dial.hooks import ablate_subspace as ablate_subspace
    from refusal_dial.hooks import affine as affine
    from refusal_dial.hooks import calibrate as calibrate
    from refusal_dial.hooks import clamp as clamp
    from refusal_dial.hooks import patch as patch
    from refusal_dial.hooks import rotate as rotate
    from refusal_dial.hooks import steer as steer
    from refusal_dial.hooks import steer_if as steer_if
    from refusal_dial.model.activations import collect as collect
    from refusal_dial.model.loading import load_model as load_model
    from refusal_dial.model.tokens import tokenize as tokenize

__version__ = "0.2.0"

_HOMES = {
    "collect": "model.activations",
    "calibrate": "hooks",
    "Direction": "directions.learning",
    "ablate": "hooks",
    "ablate_subspace": "hooks",
    "affine": "hooks",
    "clamp": "hooks",
    "patch": "hooks",
    "rotate": "hooks",
    "steer": "hooks",
    "steer_if": "hooks",
    "load_model": "model.loading",
    "tokenize": "model.tokens",
    "load_prompts": "data.prompts",
    "DialError": "common",
}

__all__ = [*_HOMES, "__version__"]


def __dir__() -> list[str]:
    """The public names, and the rooms that are used by name."""
    return sorted([*__all__, "directions", "engine", "generate", "run", "stats"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
