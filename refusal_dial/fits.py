"""Does a grid fit the model and the prompts it is to run on? Asked once, before anything is run.

Knows what shape each site's activation will have. What an edit needs of that shape is the edit's
own business (`hooks.Edit.check`, which plain TransformerLens runs ask too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.hooks import Edit
from refusal_dial.model import check_layers, check_site
from refusal_dial.tokens import Tokens
from refusal_dial.types import DialError, Hook, hook_name


def check_grid(model: TransformerBridge, tokens: Tokens, grid: Sequence[Sequence[Hook]]) -> None:
    """Raises `DialError` for prompts that are not tokenized, a grid that is not a list of lists of
    hooks, and an edit whose layer, site, head, neuron, position, width or number of rows is not one
    of these prompts in this model."""
    if not isinstance(tokens, Tokens):
        raise DialError(
            f"expected Tokens (ids with their mask), as tokenize(model, prompts) gives, not "
            f"{type(tokens).__name__}"
        )
    edits = dict.fromkeys(_edits(grid))
    check_layers(model, {edit.layer for edit in edits})
    shapes = {
        check_site(model, site): shape_of(model, tokens, site)
        for site in sorted({edit.site for edit in edits})
    }
    for edit in edits:
        edit.check(shapes[edit.site])


def shape_of(model: TransformerBridge, tokens: Tokens, site: str) -> tuple[int, ...]:
    """The shape of a site's activation on these prompts: `batch pos width`, z `batch pos head
    width`."""
    cfg = model.cfg
    if site == "z":
        return *tokens.ids.shape, int(cfg.n_heads), int(cfg.d_head)
    return *tokens.ids.shape, int(cfg.d_mlp if site == "mlp_post" else cfg.d_model)


def _edits(grid: Sequence[Sequence[Hook]]) -> Iterator[Edit]:
    """The grid's edits, where they stand at their own place."""
    for c, cell in enumerate(grid):
        if _is_hook(cell) or not isinstance(cell, Sequence) or isinstance(cell, str):
            raise DialError(
                f"cell {c + 1} of the grid is {_named(cell)}, and a cell is a list of hooks: "
                "[[steer(...)], [ablate(...)]] has two cells of one hook"
            )
        for hook in cell:
            if not _is_hook(hook):
                raise DialError(
                    f"cell {c + 1} of the grid holds {_named(hook)}, and a hook is a pair (name, "
                    "function), as steer(...) gives: join lists of hooks by +"
                )
            name, function = hook
            if isinstance(function, Edit) and name == hook_name(function.site, function.layer):
                yield function


def _is_hook(thing: object) -> bool:
    return (
        isinstance(thing, tuple)
        and len(thing) == 2
        and isinstance(thing[0], str)
        and callable(thing[1])
    )


def _named(thing: object) -> str:
    return "a hook" if _is_hook(thing) else f"a {type(thing).__name__}"
