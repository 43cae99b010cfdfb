"""Generation under hooks: completions for every cell of a grid, and how likely they are."""

from refusal_dial.generate.decode import Completion, generate

__all__ = ["Completion", "generate"]
