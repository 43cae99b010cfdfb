"""Generation under hooks: a completion for every cell of a grid, in one batch.

Rows of a batch are cells times prompts times samples. Where no hook touches the prompt before its
last token, the prompt is read once for all cells. Decoding is cached, and a row that has ended
leaves the batch. Hooks see the prompt first and then one new token a call (`common.positions`
defines what each `pos` means there).

A sampled token depends on the logits of its own row and on a random number that belongs to the
prompt, the sample and the step. So completions are paired over cells, and a cell that does nothing
gives the unsteered model's own completion.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from refusal_dial.common import DialError, Hook, hook_name, progress
from refusal_dial.engine.replay import KNOWN, restrict
from refusal_dial.engine.score import check_grid, checking_edit, misfit, warn_once
from refusal_dial.hooks import Add, Edit
from refusal_dial.model.tokens import Tokens, last_logits, log_total
from refusal_dial.model.unhooked import UnfitError, Unhooked, has_hooks, unhooked

# --------------------------------------------------------------------------------------------------
# Which token comes next: greedy, or drawn from the nucleus with a number that is the row's own.
#
# The numbers belong to the prompt, the sample and the step, so that neither the batch nor the hooks
# play a part in them.


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens. Temperature 0 is greedy: the most likely token, and one sample."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    rows: int = 256  # of a batch, at most
    max_thought_tokens: int = 0  # for a thought, besides
    until: tuple[int, ...] = ()  # tokens that end a completion as well, and are kept

    @property
    def steps(self) -> int:
        """Tokens of a thought and a reply, at most."""
        return self.max_new_tokens + self.max_thought_tokens

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("samples", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise DialError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise DialError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DialError(f"top_p must be over 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and self.samples > 1:
            raise DialError("greedy decoding has one sample: give a temperature for several")


GREEDY = Decoding()


@runtime_checkable
class DecodingFlags(Protocol):
    """What the flags of a script that makes a model speak have in common."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def rows(self) -> int: ...


def decoding_of(flags: DecodingFlags) -> Decoding:
    """How the flags want tokens chosen."""
    return Decoding(
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        top_p=flags.top_p,
        samples=flags.samples,
        seed=flags.seed,
        rows=flags.rows,
    )


def end_tokens(model: TransformerBridge) -> list[int]:
    """Every end token of the model's generation config, the tokenizer's where it names none."""
    config = getattr(model.original_model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def choose(
    logits: Float[Tensor, "row d_vocab"],
    decoding: Decoding,
    u: Float64[Tensor, " row"] | None,
) -> Int[Tensor, " row"]:
    """The next token of every row: the first of the likeliest whose summed probability exceeds
    u times that of the nucleus, the smallest set of likeliest tokens that holds `top_p`."""
    if u is None:
        return logits.float().argmax(-1)  # of half precision, several times as slow by itself
    token = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    total = log_total(logits, temperature=decoding.temperature)
    aim, left, k = u.to(logits.device), torch.arange(len(logits), device=logits.device), LIKELIEST
    while len(left):
        found, sure = _drawn(logits[left], total[left], decoding, aim[left], k)
        token[left[sure]], left, k = found[sure], left[~sure], 16 * k
    return token


ROUNDING = 1e-6
"""How far a sum of probabilities may be from itself: so near to `top_p` it is reached."""

LIKELIEST = 64
"""Tokens that are put in order first; more only for rows where these do not decide the draw."""


def _drawn(
    logits: Float[Tensor, "row d_vocab"],
    total: Float64[Tensor, " row"],
    decoding: Decoding,
    u: Float64[Tensor, " row"],
    k: int,
) -> tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """(token, whether it is the one that all tokens in order would give), from the k likeliest.

    Equally likely tokens stand in order of their ids. The last of the k may have equals that were
    left out, so it decides nothing.
    """
    k = min(k, logits.shape[-1])
    ids = logits.topk(k).indices.sort(-1).values
    value, order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    p = (value.double() / decoding.temperature - total[:, None]).exp()
    reached = p.cumsum(-1)
    enough = decoding.top_p - ROUNDING
    size = (reached < enough).sum(-1, keepdim=True).clamp(max=k - 1)
    nucleus = reached.gather(1, size) if decoding.top_p < 1 else torch.ones_like(reached[:, :1])
    at = (reached <= u[:, None] * nucleus).sum(-1, keepdim=True).clamp(max=k - 1)
    sure = (nucleus >= enough) & (value.gather(1, at) > value[:, -1:])
    return ids.gather(1, order.gather(1, at))[:, 0], sure[:, 0] | (k == logits.shape[-1])


def draws(
    tokens: Tokens, decoding: Decoding, keys: Sequence[str] | None
) -> Float64[Tensor, "prompt sample step"] | None:
    """A number in [0, 1) for every prompt, sample and step; None for greedy decoding."""
    if decoding.temperature == 0:
        return None
    if keys is None:
        keys = [
            str(row[mask.bool()].tolist())
            for row, mask in zip(tokens.ids, tokens.mask, strict=True)
        ]
    found = []
    for key in keys:
        for sample in range(decoding.samples):
            word = hashlib.sha256(f"{decoding.seed} {sample} {key}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(word) % 2**63)
            found.append(torch.rand(decoding.steps, generator=generator, dtype=torch.float64))
    return torch.stack(found).reshape(len(keys), decoding.samples, -1)


# --------------------------------------------------------------------------------------------------
# Forward passes that remember: a prompt is read once, and then one new token a call, under hooks.
#
#     (mask, cache, logits) = prefill(...);  logits = runner.logits(new token, mask, cache, hooks)
#
# Rows of a batch are prompts under cells. Where only the last prompt token is edited, what stands
# before it is read once a prompt, for all its cells.


@dataclass(frozen=True, eq=False)
class CachedBatch:
    """Some prompts under some cells; `prompts` are their numbers in the whole."""

    tokens: Tokens
    prompts: Int[Tensor, " prompt"]
    grid: Sequence[Sequence[Hook]]
    first: int = 0  # the number of the first cell


@dataclass(frozen=True, eq=False)
class Runner:
    """What runs the batches of a grid, whose hooks are given with each: the model without its hook
    points (`alone`), by SDPA, where a trial found it as good; else its own modules (`module`)."""

    model: TransformerBridge
    module: nn.Module
    alone: Unhooked | None = None

    def logits(
        self,
        ids: Int[Tensor, "row new"],
        mask: Int[Tensor, "row pos"],
        cache: DynamicCache,
        hooks: Sequence[Hook] = (),
        at: Bool[Tensor, "row new"] | None = None,
    ) -> Float[Tensor, "read d_vocab"]:
        """Logits after the new tokens that `at` names, row by row, or after the last one of each
        row; the cache grows by `ids`, and `mask` is that of all it then holds."""
        if self.alone is not None:
            with self.alone.seeing(self._sights(self.alone, hooks)):
                return self.alone.logits_at(ids, mask, cache, at)
        keep = 1 if at is None else ids.shape[1] - int(at.any(0).long().argmax())
        with self.model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            logits = self.module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        return logits[:, -1] if at is None else logits[:, -keep:][at[:, -keep:]]

    def _sights(
        self, alone: Unhooked, hooks: Sequence[Hook]
    ) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
        """What the hooks do at each place, one after the other; heads of z apart."""
        by_name: dict[str, list[Callable[..., Any]]] = {}
        for name, function in hooks:
            by_name.setdefault(name, []).append(function)
        heads = int(self.model.cfg.n_heads)

        def see(site: str, functions: list[Callable[..., Any]], value: Tensor) -> Tensor:
            out = torch.unflatten(value, -1, (heads, -1)) if site == "z" else value
            for function in functions:
                out = function(out, None)
            return out.reshape(value.shape)

        return {
            (site, layer): partial(see, site, by_name[hook_name(site, layer)])
            for site, layer in alone.taps
            if hook_name(site, layer) in by_name
        }


def runner_of(model: TransformerBridge, tokens: Tokens, grid: Sequence[Sequence[Hook]]) -> Runner:
    """What runs this grid on these prompts. The log says why it has to be the bridge."""
    attached = has_hooks(model)
    hooks = [hook for cell in grid for hook in cell]
    if not attached and all(is_known(hook) and _in_place(hook) for hook in hooks):
        places = sorted({(edit.site, edit.layer) for _, edit in hooks})  # type: ignore[attr-defined]
        why = misfit(model, tokens, {s for s, _ in places}, _step_difference, "decoding by SDPA")
        try:
            if not why:
                return Runner(model, model.original_model, Unhooked(model, places))
        except UnfitError as error:
            why = str(error)
        warn_once(model, f"decoding by the bridge's own forward pass: {why}")
    if attached or hooks:
        return Runner(model, model.original_model)
    try:
        return Runner(model, unhooked(model))
    except UnfitError:
        return Runner(model, model.original_model)


def _in_place(hook: Hook) -> bool:
    name, edit = hook
    return name == hook_name(edit.site, edit.layer)  # type: ignore[attr-defined]


@torch.no_grad()
def _step_difference(model: TransformerBridge, tokens: Tokens, site: str) -> tuple[float, float]:
    """Between the bridge's pass over two prompts under an edit of their last token, and one over
    all but that token and then one over it."""
    shortest = int(tokens.mask.sum(-1).argmin())
    some = tokens.chosen(sorted({0, shortest}))
    edit = replace(checking_edit(model, some, site), pos=-1)
    place, name = (site, edit.layer), hook_name(site, edit.layer)
    runner = Runner(model, model.original_model, Unhooked(model, [place]))
    state, off, largest = _cache(model), 0.0, 0.0
    if some.ids.shape[1] > 1:
        runner.logits(some.ids[:, :-1], some.mask[:, :-1], state)
    for hooks in ([], [(name, replace(edit, pos="all"))]):
        plain = last_logits(model, some, [(n, edit) for n, _ in hooks])
        mine = runner.logits(some.ids[:, -1:], some.mask, copy.deepcopy(state), hooks)
        off = max(off, float((mine - plain).float().abs().max()))
        largest = max(largest, float(plain.float().abs().max()))
    return off, largest


def prefill(
    runner: Runner,
    part: CachedBatch,
    prompts: Int[Tensor, " row"],
    cells: Int[Tensor, " row"],
    room: int = 0,
) -> tuple[Int[Tensor, "row pos"], DynamicCache, Float[Tensor, "row d_vocab"]]:
    """(mask, cache with room for so many tokens more, logits at the last prompt token) of every
    row.

    Where only the last prompt token is edited, what stands before it is read once a prompt.
    """
    index = prompts.to(part.tokens.ids.device)
    ids, mask = part.tokens.ids, part.tokens.mask
    if len(index) > len(ids) and ids.shape[1] > 1 and leaves_the_rest_alone(part.grid):
        state = _cache(runner.model, room)
        runner.logits(ids[:, :-1], mask[:, :-1], state)
        state.batch_select_indices(index)
        hooks = row_hooks(at_the_last_token(part.grid), cells, part.prompts[prompts])
        ids = ids[:, -1:]
    else:
        state, hooks = (
            _cache(runner.model, room),
            row_hooks(part.grid, cells, part.prompts[prompts]),
        )
    return mask[index], state, runner.logits(ids[index], mask[index], state, hooks)


class Roomy(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values with room for `room` tokens more behind them: a new token is
    written there, and nothing is copied."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.stores: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._longer(0, self.keys, key_states)
        self.values = self._longer(1, self.values, value_states)
        return self.keys, self.values

    def _longer(self, which: int, held: Tensor, new: Tensor) -> Tensor:
        n = held.shape[-2] if held.ndim == 4 else 0
        stop, store = n + new.shape[-2], self.stores[which]
        mine = store is not None and held.data_ptr() == store.data_ptr()
        if store is None or not mine or len(held) != len(store) or stop > store.shape[-2]:
            batch, heads, _, width = new.shape
            store = self.stores[which] = new.new_empty(batch, heads, stop + self.room, width)
            if n:
                store[:, :, :n] = held
        store[:, :, n:stop] = new
        return store[:, :, :stop]


def _cache(model: TransformerBridge, room: int = 0) -> DynamicCache:
    cache = DynamicCache(config=model.original_model.config)
    cache.layers = [Roomy(room) if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


# --------------------------------------------------------------------------------------------------
# One set of hooks for a batch whose rows belong to different cells.
#
# Row i of the batch is prompt `prompts[i]` under the hooks of cell `cells[i]`. A hook of one cell
# leaves the rows of all others bit-equal; additions at one place become one, with a vector a row.


LAST_POSITIONS = (-1, (-1,), "last_prompt")


@dataclass(frozen=True, eq=False)
class RowHook:
    """Applies each function to its own rows of the batch, and to no other."""

    parts: tuple[tuple[Int[Tensor, " _"], Callable[..., Any]], ...]

    def __call__(self, activation: Tensor, hook: object = None) -> Tensor:
        out = activation.clone()
        for rows, function in self.parts:
            index = rows.to(activation.device)
            changed = function(activation[index], hook)
            if changed is not None:
                out[index] = changed
        return out


def is_known(hook: Hook) -> bool:
    """Does this hook treat every batch row by itself, as data says how?"""
    return isinstance(hook[1], Edit) and isinstance(hook[1].operation, KNOWN)


def row_hooks(
    grid: Sequence[Sequence[Hook]], cells: Int[Tensor, " row"], prompts: Int[Tensor, " row"]
) -> list[Hook]:
    """The hooks of a batch with `cells[i]` and `prompts[i]` in row i.

    A cell's several hooks at one place keep their order. A hook that is not an edit is given all
    the rows of its cell as they stand in the batch.
    """
    slots: dict[tuple[str, int], list[tuple[Tensor, Callable[..., Any]]]] = {}
    for cell in sorted(set(cells.tolist())):
        rows = (cells == cell).nonzero().flatten()
        seen: dict[str, int] = {}
        for name, function in grid[cell]:
            if is_known((name, function)):
                function = restrict(cast(Edit, function), prompts[rows])
            slots.setdefault((name, seen.get(name, 0)), []).append((rows, function))
            seen[name] = seen.get(name, 0) + 1
    return [
        (name, _one_addition(parts, len(cells)) or RowHook(tuple(parts)))
        for (name, _), parts in slots.items()
    ]


def _one_addition(parts: Sequence[tuple[Tensor, Callable[..., Any]]], n: int) -> Edit | None:
    """Additions at the same positions as one, zero in the rows that have none."""
    edits = [function for _, function in parts if isinstance(function, Edit)]
    if len(edits) < len(parts) or not all(isinstance(e.operation, Add) for e in edits):
        return None
    first = edits[0]
    if any(isinstance(e.pos, Tensor | slice) or e.pos != first.pos for e in edits):
        return None
    vectors = [cast(Add, edit.operation).vector for edit in edits]
    every = vectors[0].new_zeros(n, vectors[0].shape[-1])
    for (rows, _), vector in zip(parts, vectors, strict=True):
        every[rows.to(every.device)] = vector
    return replace(first, operation=Add(every))


def leaves_the_rest_alone(grid: Sequence[Sequence[Hook]]) -> bool:
    """Is the last prompt token the first that any of these hooks can change?"""
    return all(
        is_known(hook)
        and not isinstance(hook[1].pos, Tensor | slice)  # type: ignore[attr-defined]
        and hook[1].pos in (*LAST_POSITIONS, "generated")  # type: ignore[attr-defined]
        for cell in grid
        for hook in cell
    )


def at_the_last_token(grid: Sequence[Sequence[Hook]]) -> list[list[Hook]]:
    """The hooks for a forward pass that sees the last prompt token alone.

    To an edit such a pass looks like a decoding step, so what edits the last prompt token edits
    everything here, and what edits generated tokens nothing.
    """
    return [
        [(name, replace(edit, pos="all")) for name, edit in cell if edit.pos in LAST_POSITIONS]  # type: ignore[attr-defined,type-var]
        for cell in grid
    ]


# --------------------------------------------------------------------------------------------------
# Generation under hooks: what a model says, for every cell of a grid, in one batch.
#
# Rows of a batch are cells times prompts times samples. Where no hook touches the prompt before its
# last token, the prompt is read once for all cells. Decoding is cached, and a row that has ended
# leaves the batch. Hooks see the prompt first and then one new token a call (`types.positions` says
# what each `pos` means there).
#
# A sampled token depends on the logits of its own row and on a random number that belongs to the
# prompt, the sample and the step: neither the batch nor the cell plays a part. So completions are
# paired over cells, and a cell that does nothing says what the unsteered model says.


@dataclass(frozen=True)
class Completion:
    """The completion of one prompt under one cell. `stop` is "end" (an end token), "length",
    "until" (a token of `Decoding.until`, the last of its ids), or "nan" where the logits were not
    numbers: then the completion is what came before."""

    cell: int
    prompt: int
    sample: int
    text: str
    ids: tuple[int, ...]
    stop: str


def generate(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    decoding: Decoding = GREEDY,
    *,
    keys: Sequence[str] | None = None,
) -> list[Completion]:
    """Completions of every prompt under every cell's hooks: by cell, then prompt, then sample.

    `keys` name the prompts for their random numbers (their ids, say); the default is their tokens.

    Raises `DialError` for a grid that does not fit the model or the prompts (`fits.check_grid`), or
    a prompt that leaves no room for a new token in the model's context.
    """
    check_grid(model, tokens, grid)
    room = int(model.cfg.n_ctx) - tokens.ids.shape[1]
    if room < 1:
        raise DialError(
            f"a prompt of {tokens.ids.shape[1]} tokens leaves no room in a context of "
            f"{int(model.cfg.n_ctx)}: shorten it"
        )
    numbers = draws(tokens, decoding, keys)
    found = [
        c
        for part in progress(list(_parts(tokens, grid, decoding)), "completions")
        for c in _generate(model, part, decoding, numbers)
    ]
    return sorted(found, key=lambda one: (one.cell, one.prompt, one.sample))


def _parts(
    tokens: Tokens, grid: Sequence[Sequence[Hook]], decoding: Decoding
) -> Iterator[CachedBatch]:
    """Batches of at most `decoding.rows` rows: few prompts under all cells, so that a prompt is
    read once. Hooks that are not edits see all prompts at once."""
    n, most = len(tokens), max(1, decoding.rows // decoding.samples)
    whole = not all(is_known(hook) for cell in grid for hook in cell)
    cells = max(1, most // n if whole else min(len(grid), most))
    size = n if whole else max(1, min(n, most // cells))
    for start in range(0, n, size):
        some = torch.arange(start, min(start + size, n))
        for first in range(0, len(grid), cells):
            mine = grid[first : first + cells]
            yield CachedBatch(tokens.rows(start, start + size), some, mine, first)


LEAVING = 12
"""Rows that have ended leave a batch where they are more than one in so many."""


@torch.no_grad()
def _generate(
    model: TransformerBridge,
    part: CachedBatch,
    decoding: Decoding,
    numbers: Float64[Tensor, "prompt sample step"] | None,
) -> Iterator[Completion]:
    """Decode one batch. Rows that have ended leave it, some at a time (keys and values are copied
    for it), unless a hook is not an edit."""
    samples, device, grid = decoding.samples, part.tokens.ids.device, part.grid
    row = torch.arange(len(part.prompts) * len(grid) * samples)
    prompts, cells, sample = (
        row // (len(grid) * samples),
        row // samples % len(grid),
        row % samples,
    )
    fixed = not all(is_known(hook) for cell in grid for hook in cell)
    ends = torch.tensor(end_tokens(model), device=device)
    runner = runner_of(model, part.tokens, grid)
    mask, state, logits = prefill(runner, part, prompts, cells, decoding.steps)
    alive, completions, stops = row, [list[int]() for _ in row], dict[int, str]()
    hooks = row_hooks(grid, cells, part.prompts[prompts])
    last = torch.tensor(decoding.until, dtype=torch.long, device=device)
    for step in range(decoding.steps):
        u = None if numbers is None else numbers[part.prompts[prompts[alive]], sample[alive], step]
        broken = ~torch.isfinite(logits.amax(-1) - logits.amin(-1).float())  # NaN comes through
        if bool(broken.any()):
            logits = torch.where(broken[:, None], 0.0, logits)
        token = choose(logits, decoding, u)
        closes = torch.isin(token, last) & ~broken
        ended = torch.isin(token, ends) | broken
        for r, t, bad, end, close in zip(
            *(x.tolist() for x in (alive, token, broken, ended, closes)), strict=True
        ):
            if r in stops:
                continue
            if end:
                stops[r] = "nan" if bad else "end"
            else:
                completions[r].append(t)
                if close:
                    stops[r] = "until"
        if len(stops) == len(row) or step + 1 == decoding.steps:
            break
        over = torch.tensor([r in stops for r in alive.tolist()])
        if not fixed and int(over.sum()) > len(alive) // LEAVING:
            keep = (~over).nonzero().flatten().to(device)
            alive, token, mask = alive[keep.cpu()], token[keep], mask[keep]
            state.batch_select_indices(keep)
            hooks = row_hooks(grid, cells[alive], part.prompts[prompts[alive]])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = runner.logits(token[:, None], mask, state, hooks)
    for r in row.tolist():
        text = str(model.tokenizer.decode(completions[r], skip_special_tokens=True))
        yield Completion(
            part.first + int(cells[r]),
            int(part.prompts[prompts[r]]),
            int(sample[r]),
            text,
            tuple(completions[r]),
            stops.get(r, "length"),
        )


@torch.no_grad()
def follow(
    model: TransformerBridge,
    tokens: Tokens,
    hooks: Sequence[Hook],
    completions: Sequence[Sequence[int]],
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Logits before each token of replies that are given: step k is what the model under `hooks`
    would say after the prompt and the first k tokens of `completions`, one step more than the
    longest.

    Decoding is cached, so every `pos` means what it means in `generate`. Rows that are over go on
    with their last token, and mean nothing. Raises `DialError` as `generate` does for hooks.
    """
    check_grid(model, tokens, [hooks])
    batch = torch.arange(len(tokens))
    part = CachedBatch(tokens, batch, [list(hooks)])
    runner = runner_of(model, tokens, part.grid)
    longest = max(map(len, completions), default=0)
    mask, state, logits = prefill(runner, part, batch, torch.zeros_like(batch), longest)
    yield logits
    mine = row_hooks(part.grid, torch.zeros_like(batch), batch)
    for step in range(longest):
        token = torch.tensor([row[min(step, len(row) - 1)] if row else 0 for row in completions])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = runner.logits(token.to(mask.device)[:, None], mask, state, mine)
        yield logits


@torch.no_grad()
def stream(
    model: TransformerBridge, tokens: Tokens, hooks: Sequence[Hook], max_new_tokens: int
) -> Iterator[int]:
    """The greedy reply to one prompt, token by token as it comes: the ids that `generate` has.

    Raises `DialError` for several prompts: they would not end together.
    """
    if len(tokens) != 1:
        raise DialError(f"expected one prompt, not {len(tokens)}")
    check_grid(model, tokens, [hooks])
    row, ends = torch.zeros(1, dtype=torch.long), end_tokens(model)
    part = CachedBatch(tokens, row, [list(hooks)])
    runner = runner_of(model, tokens, part.grid)
    mask, state, logits = prefill(runner, part, row, row, max_new_tokens)
    mine = row_hooks(part.grid, row, row)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        if int(token) in ends or not bool(torch.isfinite(logits).all()):
            return
        yield int(token)
        if step + 1 < max_new_tokens:
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            logits = runner.logits(token[:, None], mask, state, mine)
