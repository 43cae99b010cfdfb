"""Score many interventions on the same prompts: the one door through which every sweep goes.

First a grid is checked against the model and the prompts. Then, once a model, replay is compared
with the plain forward pass; where they differ the plain path is used, and the log names the reason.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import ENGINES, DialError, Hook, hook_name, log, one_line, one_of
from refusal_dial.engine.recording import Sizes, budget, record_run
from refusal_dial.engine.replay import (
    KNOWN,
    Rectangle,
    Replay,
    Stream,
    places_of,
    recorder,
    restrict,
    touches,
)
from refusal_dial.hooks import Add, Edit
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.model.unhooked import (
    HALF_TOLERANCE,
    TOLERANCES,
    UnfitError,
    Unhooked,
    has_hooks,
    is_out_of_memory,
)

# --------------------------------------------------------------------------------------------------
# Does a grid fit the model and the prompts it is to run on? Asked once, before anything is run.
#
# What an edit needs of that shape is the edit's own business (`hooks.Edit.check`, which plain
# TransformerLens runs ask too).


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


# --------------------------------------------------------------------------------------------------
# Whether the replay fits a model: tried on it, not assumed.
#
# Before a model's first replay two prompts go both ways: unchanged but replayed from the first
# block, and edited at every site that is asked for. The verdict holds until a weight changes.


COARSEST = 0.25
"""The largest difference that rounding may explain, as a share of the largest logit."""

Difference = Callable[[TransformerBridge, Tokens, str], tuple[float, float]]
"""(the largest difference of two ways to the same logits under an edit at a site, the largest
logit)"""

_verdicts: weakref.WeakKeyDictionary[Any, tuple[int, dict[tuple[Difference, str], str]]]
_verdicts = weakref.WeakKeyDictionary()

_said: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def warn_once(model: TransformerBridge, what: str) -> None:
    """To the log, once for each model."""
    found = _said.setdefault(model, set())
    if what not in found:
        found.add(what)
        log.info(what)


def misfit(
    model: TransformerBridge,
    tokens: Tokens,
    sites: Iterable[str],
    difference: Difference | None = None,
    way: str = "the replay",
) -> str:
    """Why replay (or another `way`, which differs by so much) cannot serve edits at these sites of
    this model; empty where it can."""
    trial = _difference if difference is None else difference
    if has_hooks(model):
        return "the model has hooks attached"
    state = hash(tuple((id(p), p._version) for p in model.parameters() if not p.is_inference()))
    if model not in _verdicts or _verdicts[model][0] != state:
        _verdicts[model] = (state, {})
    verdicts = _verdicts[model][1]
    for site in ("resid_pre", *sites):
        if (trial, site) not in verdicts:
            verdicts[trial, site] = _checked(model, tokens, site, trial, way)
        if verdicts[trial, site]:
            return verdicts[trial, site]
    return ""


def _checked(
    model: TransformerBridge, tokens: Tokens, site: str, difference: Difference, way: str
) -> str:
    dtype = next(model.original_model.parameters()).dtype
    try:
        worst, largest = difference(model, tokens, site)
        allowed = TOLERANCES.get(dtype, HALF_TOLERANCE) * largest
        if worst > allowed and dtype not in TOLERANCES:
            allowed = max(allowed, min(4 * _rounding(model, tokens), COARSEST * largest))
    except UnfitError as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{way} failed on it at {site} ({type(error).__name__}: {one_line(error)})"
    if worst <= allowed:
        return ""
    return (
        f"{way} differs from a forward pass by {worst:.2g} in a logit at {site}, where "
        f"{allowed:.2g} is allowed"
    )


@torch.no_grad()
def _rounding(model: TransformerBridge, tokens: Tokens) -> float:
    """How far one rounding of what the first block reads moves a logit: each number times 1 ± eps,
    the sign at random. A deep model in half precision answers it by more than a fixed share."""
    two = tokens.rows(0, 2)

    def rounded(activation: Tensor, hook: object) -> Tensor:
        signs = torch.randint(0, 2, activation.shape, generator=torch.Generator().manual_seed(0))
        eps = torch.finfo(activation.dtype).eps
        return activation * (1 + eps * (2 * signs.to(activation) - 1))

    moved = last_logits(model, two, [(hook_name("resid_pre", 0), rounded)])
    return float((moved - last_logits(model, two)).float().abs().max())


@torch.no_grad()
def _difference(model: TransformerBridge, tokens: Tokens, site: str) -> tuple[float, float]:
    """The largest difference between the two ways, and the largest logit."""
    shortest = int(tokens.mask.sum(-1).argmin())
    two = torch.tensor(sorted({0, shortest}), device=tokens.ids.device)
    some = Tokens(tokens.ids[two], tokens.mask[two])
    batch, length = some.ids.shape
    edit = checking_edit(model, some, site)
    cells = [[], touches([edit], batch, length, int(model.cfg.d_head))]
    twin, rows = Unhooked(model, places_of(cells)), torch.arange(batch)
    recording = record_run(model, some, 0, places_of(cells), recorder(twin, [[edit]]))
    plain = [
        last_logits(model, some),
        last_logits(model, some, [(hook_name(site, edit.layer), edit)]),
    ]
    off = [recording.logits - plain[0]]
    for first in sorted({0, length // 2, max(0, length - len(edit.pos))}):
        used = np.ones((batch, 2), dtype=bool)
        area = Rectangle(first, tuple(range(batch)), (0, 1), (0, edit.layer), used)
        final = Stream(twin, recording, area, cells, rows, len(twin.blocks)).run()
        off += [twin.logits(final[:, cell]) - plain[cell] for cell in (0, 1)]
    ids = [0, plain[1].shape[-1] - 1]
    if twin.narrow(ids):
        off.append(twin.logits(final[:, 1]) - plain[1][:, ids])
    return (
        max(float(one.float().abs().max()) for one in off),
        max(float(one.float().abs().max()) for one in plain),
    )


def checking_edit(model: TransformerBridge, tokens: Tokens, site: str) -> Edit:
    """Noise as large as the embedding, added to the last two positions in the middle block."""
    width = shape_of(model, tokens, site)[-1]
    embedded = model.original_model.get_input_embeddings()(tokens.ids)
    size = float(embedded.float().pow(2).mean().sqrt())
    noise = torch.randn(width, generator=torch.Generator().manual_seed(0)) * size
    return Edit(
        layer=len(model.blocks) // 2,
        site=site,
        pos=(-2, -1)[-tokens.ids.shape[1] :],
        operation=Add(noise.to(tokens.ids.device)),
        head=0 if site == "z" else None,
    )


# --------------------------------------------------------------------------------------------------
# Score many interventions on the same prompts: the one door through which every sweep goes.
#
#     score[c, b] = scorer(logits of prompt b at its last token under the hooks of cell c)
#
# A grid is a list of cells and a cell is a list of hooks; the empty list is the unsteered model.
# Cells are replayed on a recording wherever that is exact, and run as plain forward passes where it
# cannot be: for a user's own function, or a model that the replay does not fit (a trial finds out).


Scorer = Callable[[Tensor], Tensor]
"""Logits `batch d_vocab` at the last prompt token to one number a row, in float64. It is always
given the whole batch, in order."""


def score_grid(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    scorer: Scorer,
    *,
    engine: str = "auto",
    memory_gb: float | None = None,
) -> Float64[Tensor, "cell batch"]:
    """`score[c, b] = scorer(logits of prompt b at its last token under the hooks of cell c)`.

    `engine="plain"` runs one forward pass a cell. `"auto"` replays what each cell can change on a
    recording of the unsteered model, and says in the log what it leaves to the plain path. Within
    an engine a cell that changes nothing has the score of the unsteered cell, bit for bit.
    `memory_gb` bounds what either uses besides the model; the default is half of what is free.

    Raises `DialError` for an unknown engine, or a grid that does not fit the model or the prompts
    (`fits.check_grid`).
    """
    check_grid(model, tokens, grid)
    return _read_grid(model, tokens, grid, scorer, None, engine, memory_gb)


def residual_grid(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    reader: Callable[[Float[Tensor, "batch d_model"]], Tensor],
    *,
    layer: int,
    engine: str = "auto",
    memory_gb: float | None = None,
) -> Float64[Tensor, "cell batch"]:
    """`read[c, b] = reader(residual stream that enters the layer at prompt b's last token under the
    hooks of cell c)`: `score_grid` for what a direction reads. Blocks from the layer on do not run,
    and an edit there or later, but for the stream at the layer itself, changes nothing.

    Raises `DialError` as `score_grid` does, and for a layer that the model has not.
    """
    check_layers(model, (layer,))
    check_grid(model, tokens, grid)
    return _read_grid(
        model, tokens, [_before(cell, layer) for cell in grid], reader, layer, engine, memory_gb
    )


def _before(cell: Sequence[Hook], layer: int) -> list[Hook]:
    """The cell's hooks, without edits that the stream entering the layer never sees."""

    def sees(edit: object) -> bool:
        return not isinstance(edit, Edit) or edit.layer - (edit.site == "resid_pre") < layer

    return [(name, function) for name, function in cell if sees(function)]


def _read_grid(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    scorer: Scorer,
    until: int | None,
    engine: str,
    memory_gb: float | None,
) -> Float64[Tensor, "cell batch"]:
    """Of logits, or of the residual stream that enters layer `until`; the grid is checked."""
    if engine not in ENGINES:
        raise one_of(engine, ENGINES, "engine")
    room = budget(tokens.ids.device, memory_gb)
    scores = torch.zeros(len(grid), len(tokens), dtype=torch.float64)
    replayed = _replayable(model, tokens, grid) if engine == "auto" else {}
    if replayed:
        numbers, cells = list(replayed), list(replayed.values())
        for place, score in Replay(model, tokens, cells, room, until).scores(scorer):
            scores[numbers[place]] = score
    rows = max(1, room // Sizes.of(model).plain(tokens.ids.shape[1]))
    for c in sorted(set(range(len(grid))) - set(replayed)):
        scores[c] = scorer(_plain(model, tokens, grid[c], rows, until)).cpu()
    return scores


def _replayable(
    model: TransformerBridge, tokens: Tokens, grid: Sequence[Sequence[Hook]]
) -> dict[int, list[Edit]]:
    """The cells that replay can serve, as data. The log says why others cannot be."""
    cells = {}
    for c, cell in enumerate(grid):
        edits = _read(model, cell)
        if edits is not None:
            cells[c] = edits
    sites = sorted({edit.site for edits in cells.values() for edit in edits})
    why = misfit(model, tokens, sites) if cells else ""
    if why:
        warn_once(model, f"plain forward passes for {type(model.original_model).__name__}: {why}")
        return {}
    return cells


def _read(model: TransformerBridge, cell: Sequence[Hook]) -> list[Edit] | None:
    """The cell's hooks as data, None where one of them can only be called."""
    edits = []
    for name, function in cell:
        if not isinstance(function, Edit) or name != hook_name(function.site, function.layer):
            warn_once(model, f"plain forward passes for cells with a hook of one's own at {name}")
            return None
        if not isinstance(function.operation, KNOWN):
            kind = type(function.operation).__name__
            warn_once(model, f"plain forward passes for cells with the operation {kind}")
            return None
        edits.append(function)
    return edits


def _plain(
    model: TransformerBridge,
    tokens: Tokens,
    cell: Sequence[Hook],
    rows: int,
    until: int | None,
) -> Float[Tensor, "batch read"]:
    """Last logits (or the stream entering layer `until`) by plain forward passes over at most
    `rows` prompts, halved on running out of memory. A hook that is not an edit may depend on the
    whole batch, so that is never divided."""
    batch = len(tokens)
    whole = any(not isinstance(f, Edit) or not isinstance(f.operation, KNOWN) for _, f in cell)
    rows = batch if whole else min(rows, batch)
    parts: list[Tensor] = []
    start = 0
    while start < batch:
        if rows == batch:
            mine, some = list(cell), tokens
        else:
            index = torch.arange(start, min(start + rows, batch))
            mine = [(name, restrict(edit, index)) for name, edit in cell]  # type: ignore[arg-type]
            some = Tokens(tokens.ids[start : start + rows], tokens.mask[start : start + rows])
        try:
            parts.append(_last(model, some, mine, until))
        except RuntimeError as error:
            if not is_out_of_memory(error) or whole or rows == 1:
                raise
            rows = rows // 2
            continue
        start += rows
    return torch.cat(parts)


def _last(
    model: TransformerBridge, tokens: Tokens, cell: Sequence[Hook], until: int | None
) -> Float[Tensor, "batch read"]:
    if until is None:
        return last_logits(model, tokens, cell)
    seen: list[Tensor] = []

    def see(activation: Tensor, hook: object) -> None:
        seen.append(activation[:, -1].clone())

    last_logits(model, tokens, [*cell, (hook_name("resid_pre", until), see)])
    return seen[0]
