"""Who writes a direction: what stands along it at one layer, as an exact sum over all that wrote
there, and which of the writers matter.

    r·h_L = r·h_0 + sum over layers l < L of
            [ sum_h z_(l,h) · (W_O,(l,h) r)  +  r·b_O  +  sum_n a_(l,n) (W_out,n · r)  +  r·b_out ]

at one position of a prompt, the last or an earlier one; z is what a head reads, a what a neuron
gives, before W_O and W_out. No later token reaches that position: what stands there is that of the
prompt cut after it, and the score is that of the whole prompt. r acts before any norm. The sum is
exact where blocks add what they compute to the residual stream, and nothing stands between: where a
norm does (Gemma 2, OLMo 2) it is refused.

The study compares matched pairs: of each the prompt that scores higher ("refused") and the other
("complied"), none of which the direction was learned from. A large share of the sum is no cause: a
part may write much that later parts undo (repair), or little that later parts amplify (a gate). So
the units with the largest shares are replaced for real, and r·h_L and the score are measured:

    patch         by the same unit of the pair's other prompt, both ways round
    same_class    by that of another prompt of the same side: what any other prompt does
    random        by a vector as far away in a random direction
    mean, zero    by the mean over the other side; by nothing (knockout)
    repair        1 - (change of r·h_L) / (change of the unit's own write): 1 = undone later

p of a share is that of labels permuted within pairs, for all units at once (max-T).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cli.flags import DecompositionFlags
from refusal_dial.common import DialError, Hook, hook_name, log, progress, without_nan
from refusal_dial.data.prompts import Prompt, holdout_split, of_subset
from refusal_dial.data.prompts import pairs as by_pair
from refusal_dial.directions.files import check_fits
from refusal_dial.directions.learning import Direction, top_bottom
from refusal_dial.engine.score import residual_grid, score_grid
from refusal_dial.engine.slopes import first_order
from refusal_dial.hooks import patch
from refusal_dial.model.activations import collect_positions, collect_rows
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.model.unhooked import HALF, HALF_TOLERANCE, unwrapped
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, Grid, Task, batches, grid_of
from refusal_dial.run.schema import DECOMPOSITION
from refusal_dial.stats.intervals import mean_interval
from refusal_dial.stats.p_values import holm, sign_flip_max_p, sign_flip_p
from refusal_dial.studies.base import Study, provenance_of, study_settings
from refusal_dial.studies.pairs import ROLE_PARTS, Pair, Pairs, role_order
from refusal_dial.studies.patching import (
    LAST_ROLE,
    WAY_RUNS,
    Place,
    as_far,
    choose_pairs,
    unit_noise,
)
from refusal_dial.studies.steering import learned_from

SIDES = ("refused", "complied")
"""The prompt of a pair that scores higher, and the other."""

EXACT = 1e-3
"""How far the sum may be from what stands there, as a share of its size, in float32."""


# --------------------------------------------------------------------------------------------------
# Units, and what each writes along the direction for what it gives.


@dataclass(frozen=True)
class Unit:
    """A head or a neuron that writes into the residual stream."""

    kind: str  # head or neuron
    layer: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.layer}.{self.number}"

    @property
    def place(self) -> Place:
        """Where patching writes it."""
        if self.kind == "head":
            return Place(self.layer, "z", (LAST_ROLE,), head=self.number)
        return Place(self.layer, "mlp_post", (LAST_ROLE,), neuron=self.number)

    def write(self, value: Float[Tensor, "batch width"], pos: int = -1) -> Hook:
        """The hook that puts these values in its place, at the position."""
        at = self.place
        return patch(value, layer=at.layer, site=at.site, head=at.head, neuron=at.neuron, pos=pos)


@dataclass(frozen=True, eq=False)
class Readers:
    """What a unit writes along r for an activation of 1: `W_O r` by head, `W_out r` by neuron; and
    what the biases of a layer's attention and MLP write."""

    heads: Float64[Tensor, "layer head d_head"]
    neurons: Float64[Tensor, "layer neuron"]
    biases: Float64[Tensor, "layer 2"]


def readers_of(model: TransformerBridge, unit: Float[Tensor, " d_model"], layer: int) -> Readers:
    """The linear maps of the layers below, each contracted with the direction first.

    Raises `DialError` where a block does not add a linear map of its heads and neurons to the
    stream: a norm behind it, a mixture of experts, no such parts.
    """
    kind = type(model.original_model).__name__
    if layer < 1:
        raise DialError("layer 0 has no writers below it: expected a layer from 1 up")
    check_layers(model, (layer,))
    for site in ("z", "mlp_post"):
        check_site(model, site)
    for block in list(model.blocks)[:layer]:
        after = [name for name in ("ln1_post", "ln2_post") if hasattr(block, name)]
        if after:
            raise DialError(
                f"{kind} has a norm behind what its blocks compute ({', '.join(after)}), so the "
                "stream is no sum of what heads and neurons write: expected blocks without one"
            )
    heads, neurons, biases = [], [], []
    for block in list(model.blocks)[:layer]:
        by_head, attention = _contracted(block.attn.o, unit)
        by_neuron, mlp = _contracted(block.mlp.out, unit)
        heads.append(by_head.view(int(model.cfg.n_heads), -1))
        neurons.append(by_neuron)
        biases.append(torch.stack([attention, mlp]))
    return Readers(torch.stack(heads), torch.stack(neurons), torch.stack(biases))


def _contracted(
    part: Any, unit: Float[Tensor, " d_model"]
) -> tuple[Float64[Tensor, " d_in"], Float64[Tensor, ""]]:
    """(W r, r·b) of an affine map, whatever class of module it is, in float64 on the CPU."""
    linear = copy.deepcopy(unwrapped(part)).cpu().double()
    width = next(w.numel() // len(unit) for w in linear.parameters() if w.ndim == 2)
    at = torch.zeros(1, width, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        out = linear(at) @ unit.double().cpu()
        (slope,) = torch.autograd.grad(out.sum(), at)
    return slope[0], out.detach()[0]


# --------------------------------------------------------------------------------------------------
# What stands at the last position of every prompt (cut after the position that is taken apart), and
# the sum.


@dataclass(frozen=True, eq=False)
class UnitActivations:
    """What the heads and neurons below a layer give at the last position, the stream's value along
    r where it begins and at the layer, and its norm there."""

    z: Float[Tensor, "prompt layer head d_head"]
    post: Float[Tensor, "prompt layer neuron"]
    embed: Float64[Tensor, " prompt"]
    total: Float64[Tensor, " prompt"]
    norm: Float64[Tensor, " prompt"]

    def of(self, unit: Unit, rows: Sequence[int]) -> Float[Tensor, "some width"]:
        """One unit's activation, in these prompts."""
        if unit.kind == "head":
            return self.z[rows, unit.layer, unit.number]
        return self.post[rows, unit.layer, unit.number, None]


@torch.no_grad()
def unit_activations(
    model: TransformerBridge,
    tokens: Tokens,
    unit: Float[Tensor, " d_model"],
    layer: int,
    batch_size: int,
) -> UnitActivations:
    """One forward pass a batch. Raises `DialError` for activations that are not finite."""
    places = [(site, n) for site in ("z", "mlp_post") for n in range(layer)]
    held: list[tuple[Tensor, ...]] = []
    for rows in progress(batches(len(tokens), batch_size), "what heads and neurons give"):
        some = tokens.rows(rows.start, rows.stop).on(model)
        last = torch.full((len(rows), 1), -1)
        ends = [("resid_pre", 0), ("resid_pre", layer)]
        seen = collect_rows(model, some, [*places, *ends], last)
        z, post = (
            torch.stack([seen[site, n][:, 0].float().cpu() for n in range(layer)], 1)
            for site in ("z", "mlp_post")
        )
        first, there = (seen[end][:, 0].double().cpu() for end in ends)
        along = first @ unit.double().cpu(), there @ unit.double().cpu()
        held.append((z.flatten(3), post, *along, there.norm(dim=-1)))
    return UnitActivations(*(torch.cat(parts) for parts in zip(*held, strict=True)))


@dataclass(frozen=True, eq=False)
class Writes:
    """The parts of r·h_L, prompt by prompt."""

    embed: Float64[Tensor, " prompt"]
    heads: Float64[Tensor, "prompt layer head"]
    neurons: Float64[Tensor, "prompt layer neuron"]
    biases: Float64[Tensor, "layer 2"]
    total: Float64[Tensor, " prompt"]
    norm: Float64[Tensor, " prompt"]

    def of(self, unit: Unit) -> Float64[Tensor, " prompt"]:
        """What one unit writes."""
        held = self.heads if unit.kind == "head" else self.neurons
        return held[:, unit.layer, unit.number]


def writes_of(activations: UnitActivations, readers: Readers) -> Writes:
    """Every unit's activation times what it writes for 1."""
    heads = torch.einsum("blhd,lhd->blh", activations.z.double(), readers.heads)
    neurons = activations.post.double() * readers.neurons
    given = activations
    return Writes(given.embed, heads, neurons, readers.biases, given.total, given.norm)


def completeness(*sides: Writes) -> float:
    """`max |sum of the parts - r·h_L| / max |r·h_L|` over all prompts: 0 where the sum is exact.
    Where next to nothing stands along r, as a share of 1% of the stream's norm."""
    off, size = 0.0, 0.0
    for one in sides:
        parts = one.embed + one.heads.sum((1, 2)) + one.neurons.sum((1, 2)) + one.biases.sum()
        off = max(off, float((parts - one.total).abs().max()))
        size = max(size, float(one.total.abs().max()), 0.01 * float(one.norm.mean()))
    return off / size


def check_complete(model: TransformerBridge, off: float) -> None:
    """Raises `DialError` where the parts do not add up to what stands there (`completeness`)."""
    dtype = next(model.original_model.parameters()).dtype
    allowed = HALF_TOLERANCE if dtype in HALF else EXACT
    if not off <= allowed:
        raise DialError(
            f"the parts of {type(model.original_model).__name__} do not add up to its residual "
            f"stream (off by {off:.2g} of it, {allowed:g} is allowed): its blocks scale or "
            "normalise what they add"
        )


# --------------------------------------------------------------------------------------------------
# The study: a direction, pairs it was not learned from, and the units that write most of it.


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Everything that the rows are computed from. Sides are those of `SIDES`."""

    study: Study
    direction: Direction
    pairs: Pairs  # clean is the refused side, corrupted the complied one
    readers: Readers
    held: tuple[UnitActivations, UnitActivations]
    writes: tuple[Writes, Writes]
    p_values: Mapping[Unit, float]
    units: tuple[Unit, ...]  # those that are replaced, the largest share first
    listed: tuple[Unit, ...]  # all heads, and the neurons that are shown one by one
    sources: tuple[str, ...]  # parts of a prompt
    pos: int = -1

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        off = completeness(*self.writes)
        return (*self.study.about, f"the parts add up to r·h within {off:.1e} of it")

    @property
    def layer(self) -> int:
        return self.direction.provenance.layer

    @property
    def role(self) -> str:
        """The role of the position: `end-1` is the last."""
        return f"end{self.pos}"

    @property
    def ends(self) -> Pairs:
        """The pairs cut after the position."""
        return _cut(self.pairs, self.pos)


def study_decomposition(
    study: Study, flags: DecompositionFlags, given: Direction | None = None
) -> Decomposition:
    """Read the pairs, take the sum apart, and choose the units to be replaced."""
    # 1. The direction, and the pairs that it has not seen.
    direction, train = _direction(study, flags, given)
    layer, unit = direction.provenance.layer, direction.unit
    pos = direction.provenance.pos if flags.pos is None else flags.pos
    pairs = unseen_pairs(study, flags, train)
    ends = _cut(pairs, pos)
    # 2. What every unit writes, on both sides.
    readers = readers_of(study.model, unit, layer)
    read = partial(
        unit_activations, study.model, unit=unit, layer=layer, batch_size=flags.batch_size
    )
    refused, complied = (read(tokens=tokens) for tokens in (ends.clean, ends.corrupted))
    writes = writes_of(refused, readers), writes_of(complied, readers)
    check_complete(study.model, completeness(*writes))
    # 3. The difference that each makes, against labels permuted within pairs.
    heads = writes[0].heads - writes[1].heads
    neurons = writes[0].neurons - writes[1].neurons
    units = [Unit("head", *at) for at in np.ndindex(*heads.shape[1:])]
    units += [Unit("neuron", *at) for at in np.ndindex(*neurons.shape[1:])]
    rows = torch.cat([heads.flatten(1), neurons.flatten(1)], 1).T.numpy()
    p_values = sign_flip_max_p(rows, flags.seed, flags.n_permutations)
    # 4. Those that write most of it: some are replaced, more are shown.
    order = np.argsort(-np.abs(rows.mean(1)), kind="stable")
    chosen = [units[i] for i in order[: flags.n_top]]
    strongest = [units[i] for i in order if units[i].kind == "neuron"][: flags.n_neurons]
    listed = dict.fromkeys([u for u in units if u.kind == "head"] + strongest + chosen)
    parts = {_part(role) for pair in pairs.items for role in pair.roles}
    return Decomposition(
        study,
        direction,
        pairs,
        readers,
        (refused, complied),
        writes,
        dict(zip(units, p_values.tolist(), strict=True)),
        tuple(chosen),
        tuple(listed),
        tuple(part for part in ROLE_PARTS if part in parts),
        pos,
    )


def _cut(pairs: Pairs, pos: int) -> Pairs:
    """The pairs without what comes after the position. Raises `DialError` where a prompt is too
    short to have it."""
    shortest = min(min(pair.lengths) for pair in pairs.items)
    if not -shortest <= pos <= -1:
        raise DialError(
            f"position {pos} is not in every prompt: expected -1 to -{shortest}, the length of the "
            "shortest"
        )
    stop = None if pos == -1 else pos + 1
    one, other = (
        Tokens(tokens.ids[:, :stop], tokens.mask[:, :stop])
        for tokens in (pairs.clean, pairs.corrupted)
    )
    return replace(pairs, clean=one, corrupted=other)


def _direction(
    study: Study, flags: DecompositionFlags, given: Direction | None
) -> tuple[Direction, list[Prompt]]:
    """(the given direction or one learned on half of EDGE, the prompts it was learned from)."""
    if given is not None:
        check_fits(given, study.model, flags.any_model)
        site = given.provenance.site
        if site != "resid_pre":
            raise DialError(
                f"the direction is one of {site}: expected one of resid_pre, whose writers are "
                "known"
            )
        return given, learned_from(given, study.prompts)
    train, _ = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed, flags.holdout)
    rows, (layer,) = study.rows(train), study.layers
    about = provenance_of(study, train, flags)
    about = replace(about, layer=layer, pos=-1 if flags.pos is None else flags.pos)
    scores = [float(score) for score in study.scores[rows]]
    return top_bottom(study.activations[0][rows], scores, about, flags.k), train


def unseen_pairs(study: Study, flags: DecompositionFlags, train: Sequence[Prompt]) -> Pairs:
    """Matched pairs without a prompt that the direction was learned from, whose scores differ by
    `--gap`; of each the prompt that scores higher comes first.

    Raises `DialError` where fewer than two are left.
    """
    found = choose_pairs(study, flags, {prompt.id for prompt in train})
    chosen, new = found.pairs, found.counts["matched"]
    if len(chosen) < 2:
        raise DialError(f"1 pair differs in score by {flags.gap:g}: expected 2; lower --gap")
    counts = len(by_pair(study.prompts)), new, len(chosen)
    log.info("%d matched pairs, %d of them new to the direction, %d used", *counts)
    score = dict(zip((prompt.id for prompt in study.prompts), study.scores, strict=True))
    inverted = [score[pair.clean.id] < score[pair.corrupted.id] for pair in chosen.items]
    return _swapped(chosen, np.array(inverted))


def _swapped(pairs: Pairs, which: NDArray[np.bool_]) -> Pairs:
    """The pairs with clean and corrupted exchanged where asked."""
    items = tuple(
        Pair(
            one.id,
            one.corrupted,
            one.clean,
            one.lengths[::-1],
            {role: at[::-1] for role, at in one.roles.items()},
        )
        if swap
        else one
        for one, swap in zip(pairs.items, which, strict=True)
    )
    width = max(pairs.clean.ids.shape[1], pairs.corrupted.ids.shape[1])
    one, other = (_padded(tokens, width) for tokens in (pairs.clean, pairs.corrupted))
    swap = torch.from_numpy(which)[:, None].to(one.ids.device)
    first, second = (
        Tokens(torch.where(swap, a.ids, b.ids), torch.where(swap, a.mask, b.mask))
        for a, b in ((other, one), (one, other))
    )
    n = len(items)
    return Pairs(items, first.rows(0, n), second.rows(0, n))


def _padded(tokens: Tokens, width: int) -> Tokens:
    more = (width - tokens.ids.shape[1], 0)
    pad = torch.nn.functional.pad
    return Tokens(pad(tokens.ids, more), pad(tokens.mask, more))


def _part(role: str) -> str:
    """The part of a prompt that a role belongs to: `phrase-2` to `phrase`."""
    return ROLE_PARTS[role_order(role)[0]]


# --------------------------------------------------------------------------------------------------
# The rows: what every part writes, where heads read it from, and what replacing units does.


COLUMNS = ["measure", "direction", "seed", "layer", "kind", "unit", "later", "role", "way"]
COLUMNS += ["prompt_id", "subset", "split", "score"]

CONTROLS = ("patch", "same_class", "random", "mean", "zero")


@dataclass(frozen=True)
class Label:
    """What a number is: the columns of its row that do not name a pair."""

    measure: str  # write, source, score, projection, attribution, kept_score, ..., gate
    direction: str
    way: str
    kind: str
    layer: int | None = None
    unit: int | None = None
    seed: int | None = None
    later: str = ""
    role: str = ""

    @classmethod
    def of(cls, measure: str, direction: str, way: str, unit: Unit, **more: Any) -> Label:
        """That of a number about one unit."""
        return cls(measure, direction, way, unit.kind, unit.layer, unit.number, **more)


Row = tuple[Label, NDArray[np.float64]]
"""A label and its number for every pair of a batch."""


@dataclass(frozen=True, eq=False)
class DecompositionPlan:
    """Pairs in batches; of each batch every number of the study."""

    opened: Decomposition
    budget: Budget
    seed: int
    n_random: int
    gate_pairs: int

    @property
    def tasks(self) -> list[Task]:
        each, gates = self._rows_a_pair, len(self._gates)
        found = []
        for rows in batches(len(self.opened.pairs), self.budget.batch_size):
            reading = max(0, min(rows.stop, self.gate_pairs) - rows.start)
            found.append(Task(each * len(rows) + gates * reading, rows))
        return found

    @property
    def grid(self) -> Grid:
        labels = [
            {"kind": one.kind, "layer": one.layer, "unit": one.number, "by": ", ".join(CONTROLS)}
            for one in self.opened.units
        ]
        return grid_of({"pairs": len(self.opened.pairs)}, labels)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        rows = task.prompts
        found = [*self._written(rows), *self._sources(model, rows)]
        found += [*self._replaced(model, rows), *self._kept(model, rows)]
        frames = [self._frame(rows, found)]
        reading = range(rows.start, max(rows.start, min(rows.stop, self.gate_pairs)))
        if len(reading):
            frames.append(self._frame(reading, list(self._gated(model, reading))))
        return pd.concat(frames, ignore_index=True)

    def shrink(self, prompts: int, cells: int) -> DecompositionPlan:
        """Of the same units, on the first pairs: what is chosen from depends on all."""
        budget = replace(self.budget, batch_size=min(self.budget.batch_size, prompts))
        pairs = self.opened.pairs.chosen(range(min(prompts, len(self.opened.pairs))))
        opened = replace(self.opened, pairs=pairs, units=self.opened.units[:cells])
        return replace(self, opened=opened, budget=budget, gate_pairs=min(1, self.gate_pairs))

    def memory(self, model: TransformerBridge) -> float:
        return self.budget.memory(model)

    # 1. What every part writes: heads, some neurons one by one, the others of a layer together.

    def _written(self, rows: range) -> Iterator[Row]:
        listed = self.opened.listed
        for way, writes in zip(SIDES, self.opened.writes, strict=True):
            some = slice(rows.start, rows.stop)
            yield Label("write", "", way, "total"), writes.total[some].numpy()
            yield Label("write", "", way, "embed"), writes.embed[some].numpy()
            bias = np.full(len(rows), float(writes.biases.sum()))
            yield Label("write", "", way, "bias"), bias
            for unit in listed:
                yield Label.of("write", "", way, unit), writes.of(unit)[some].numpy()
            others = writes.neurons[some].clone()
            for unit in listed:
                if unit.kind == "neuron":
                    others[:, unit.layer, unit.number] = 0
            for layer, rest in enumerate(others.sum(2).T):
                yield Label("write", "", way, "other neurons", layer), rest.numpy()

    # 2. From which part of the prompt each of the heads reads what it writes.

    def _sources(self, model: TransformerBridge, rows: range) -> Iterator[Row]:
        heads = [unit for unit in self.opened.units if unit.kind == "head"]
        batch = self.opened.ends.chosen(rows).on(model)
        for side, (way, tokens) in enumerate(
            zip(SIDES, (batch.clean, batch.corrupted), strict=True)
        ):
            found = source_writes(model, tokens, heads, self.opened.readers)
            stop = tokens.ids.shape[1]
            whole = stop - 1 - self.opened.pos
            parts = [position_parts(pair, side, whole)[:stop] for pair in batch.items]
            for unit, each in zip(heads, found, strict=True):
                for part in self.opened.sources:
                    mine = torch.tensor([[here == part for here in row] for row in parts])
                    value = torch.where(mine, each, torch.zeros_like(each)).sum(1)
                    yield Label.of("source", "", way, unit, role=part), value.numpy()

    # 3. What replacing one unit, all of them, and as many others does to r·h and to the score.

    def _replaced(self, model: TransformerBridge, rows: range) -> Iterator[Row]:
        opened, batch = self.opened, self.opened.pairs.chosen(rows).on(model)
        ends = opened.ends.chosen(rows).on(model)
        unit = opened.direction.unit.double()
        how = partial(dict[str, Any], engine=self.budget.engine, memory_gb=self.budget.memory_gb)
        for way, (run, _) in WAY_RUNS.items():
            tokens = (batch.clean, batch.corrupted)[run]
            cells = [(Label("", "baseline", way, "set"), list[tuple[Unit, Tensor]]())]
            for one in opened.units:
                for control in CONTROLS:
                    value = self._value(one, control, rows, run)
                    cells.append((Label.of("", control, way, one), [(one, value)]))
            for name, number, members in self._sets:
                together = [(one, self._value(one, "patch", rows, run)) for one in members]
                cells.append((Label("", name, way, "set", seed=number), together))
            # The score is that of the whole prompt; r·h that of the prompt cut at the position.
            grid = [[one.write(v, opened.pos) for one, v in members] for _, members in cells]
            cut = [[one.write(v) for one, v in members] for _, members in cells]
            scores = score_grid(model, tokens, grid, opened.study.scorer, **how())

            def along(stream: Tensor) -> Tensor:
                return stream.double() @ unit.to(stream.device)

            end = (ends.clean, ends.corrupted)[run]
            projections = residual_grid(model, end, cut, along, layer=opened.layer, **how())
            for measure, values in (("score", scores), ("projection", projections)):
                for (label, _), value in zip(cells, values, strict=True):
                    yield replace(label, measure=measure), value.numpy()
            # The tangent of the patches, beside them.
            patches = [
                (label, hooks)
                for (label, _), hooks in zip(cells, grid, strict=True)
                if label.direction == "patch"
            ]
            guesses = first_order(
                model, tokens, [hooks for _, hooks in patches], opened.study.scorer
            )
            for (label, _), value in zip(patches, guesses, strict=True):
                yield replace(label, measure="attribution"), value.numpy()

    def _value(self, unit: Unit, control: str, rows: range, run: int) -> Float[Tensor, "batch w"]:
        """What is written into the run of side `run` in place of one unit."""
        own, other = self.opened.held[run], self.opened.held[1 - run]
        here = list(rows)
        if control == "patch":
            return other.of(unit, here)
        if control == "same_class":
            return own.of(unit, [self._donors[run][i] for i in here])
        if control == "random":
            before, value = (side.of(unit, here)[:, None] for side in (own, other))
            noise = unit_noise(unit.place, len(own.embed), before.shape[-1], self.seed)
            return as_far(before, value, noise[here])[:, 0]
        if control == "mean":
            every = list(range(len(other.embed)))
            return other.of(unit, every).mean(0).expand(len(here), -1)
        return torch.zeros_like(own.of(unit, here))

    @cached_property
    def _donors(self) -> tuple[list[int], list[int]]:
        """For each pair another one, whose prompt of the same side stands in for its own."""
        found = []
        for side in (0, 1):
            order = np.random.default_rng([self.seed, side]).permutation(len(self.opened.held[0].z))
            giver = np.empty(len(order), dtype=int)
            giver[order] = np.roll(order, -1)
            found.append(giver.tolist())
        return found[0], found[1]

    @cached_property
    def _sets(self) -> list[tuple[str, int | None, tuple[Unit, ...]]]:
        """(name, number, members): the units together, and random sets of as many of the others."""
        top, rng = self.opened.units, np.random.default_rng([self.seed, 2])
        rest = [unit for unit in self.opened.p_values if unit not in top]
        others = {kind: [unit for unit in rest if unit.kind == kind] for kind in ("head", "neuron")}
        found: list[tuple[str, int | None, tuple[Unit, ...]]] = [("top", None, top)]
        for number in range(self.n_random):
            drawn: list[Unit] = []
            for kind, some in others.items():
                picked = rng.permutation(len(some))[: sum(one.kind == kind for one in top)]
                drawn += [some[i] for i in picked]
            found.append(("random_set", number, tuple(drawn)))
        return found

    # 4. Is the set enough: everything else at the position is that of the complied prompt.

    def _kept(self, model: TransformerBridge, rows: range) -> Iterator[Row]:
        opened, batch = self.opened, self.opened.pairs.chosen(rows).on(model)
        unit, other, here = opened.direction.unit.double(), opened.held[1], list(rows)
        for name, number, members in self._sets:
            hooks = keep_only(members, other.z[here], other.post[here], opened.pos)
            seen, logits = collect_positions(
                model, batch.clean, [opened.layer], [opened.pos], batch_size=len(here), hooks=hooks
            )
            label = Label("kept_score", name, "noise", "set", seed=number)
            yield label, opened.study.scorer(logits).double().cpu().numpy()
            along = seen[0, 0].double() @ unit
            yield replace(label, measure="kept_projection"), along.numpy()

    # 5. Gates: heads whose interchange changes what later units write.

    @cached_property
    def _gates(self) -> list[tuple[Unit, Unit]]:
        """Every head, and each of the units in a later layer (or the MLP of its own)."""
        heads = [Unit("head", *at) for at in np.ndindex(*self.opened.readers.heads.shape[:2])]
        return [
            (head, unit)
            for head in heads
            for unit in self.opened.units
            if unit.layer > head.layer or (unit.layer == head.layer and unit.kind == "neuron")
        ]

    def _gated(self, model: TransformerBridge, rows: range) -> Iterator[Row]:
        opened, here = self.opened, list(rows)
        tokens = opened.ends.clean.rows(rows.start, rows.stop).on(model)
        later: dict[Unit, list[Unit]] = {}
        for head, unit in self._gates:
            later.setdefault(head, []).append(unit)
        for head, units in progress(list(later.items()), "heads that change later writers"):
            seen: dict[Unit, Tensor] = {}
            hooks = [head.write(opened.held[1].of(head, here))]
            hooks += [_reading(unit, seen) for unit in units]
            with torch.no_grad():
                last_logits(model, tokens, hooks)
            for unit in units:
                if unit.kind == "head":
                    now = seen[unit].double().cpu() @ opened.readers.heads[unit.layer, unit.number]
                else:
                    now = (
                        seen[unit].double().cpu() * opened.readers.neurons[unit.layer, unit.number]
                    )
                change = now - opened.writes[0].of(unit)[here]
                label = Label.of("gate", "patch", "noise", head, later=unit.name)
                yield label, change.numpy()

    @property
    def _rows_a_pair(self) -> int:
        """Without those of gates."""
        opened, sets = self.opened, len(self._sets)
        heads = sum(unit.kind == "head" for unit in opened.units)
        written = 3 + len(opened.listed) + opened.layer
        replaced = 1 + len(CONTROLS) * len(opened.units) + sets
        each_side = written + heads * len(opened.sources) + 2 * replaced + len(opened.units)
        return 2 * each_side + 2 * sets

    def _frame(self, rows: range, found: Sequence[Row]) -> pd.DataFrame:
        pairs = [self.opened.pairs.items[i] for i in rows]
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for label, values in found:
            for name in COLUMNS[:-4]:
                columns[name] += [getattr(label, name)] * len(pairs)
            columns["prompt_id"] += [pair.id for pair in pairs]
            columns["subset"] += [pair.corrupted.subset for pair in pairs]
            columns["split"] += ["holdout"] * len(pairs)
            columns["score"] += np.asarray(values, dtype=float).tolist()
        whole = dict.fromkeys(("seed", "layer", "unit"), "Int64")
        return pd.DataFrame({k: pd.Series(v, dtype=whole.get(k)) for k, v in columns.items()})


def _reading(unit: Unit, seen: dict[Unit, Tensor]) -> Hook:
    """The hook that keeps what a unit gives at the last position."""

    def see(activation: Tensor, hook: object) -> None:
        seen[unit] = activation[:, -1, unit.number].clone()

    return hook_name(unit.place.site, unit.layer), see


def keep_only(
    units: Sequence[Unit],
    z: Float[Tensor, "batch layer head d_head"],
    post: Float[Tensor, "batch layer neuron"],
    pos: int = -1,
) -> list[Hook]:
    """Hooks that put these activations at the position of every head and neuron but those of
    `units`, which go on computing their own."""

    def replaced(values: Tensor, kept: list[int]) -> Any:
        def write(activation: Tensor, hook: object) -> Tensor:
            out, own = activation.clone(), activation[:, pos].clone()
            out[:, pos] = values.to(activation)
            out[:, pos, kept] = own[:, kept]
            return out

        return write

    hooks = []
    for layer in range(z.shape[1]):
        for kind, site, values in (("head", "z", z), ("neuron", "mlp_post", post)):
            kept = [u.number for u in units if u.kind == kind and u.layer == layer]
            hooks.append((hook_name(site, layer), replaced(values[:, layer], kept)))
    return hooks


@torch.no_grad()
def source_writes(
    model: TransformerBridge, tokens: Tokens, heads: Sequence[Unit], readers: Readers
) -> list[Float64[Tensor, "batch pos"]]:
    """What each head writes along r at the last position, by the position it read it from:
    `pattern[last, s] (v_s · W_O r)`; over all positions it is the head's write. Query heads that
    share keys and values have the values of their group."""
    seen: dict[str, Tensor] = {}

    def see(name: str) -> Hook:
        def keep(activation: Tensor, hook: object) -> None:
            last = "pattern" in name
            seen[name] = (activation[:, :, -1] if last else activation).double().cpu()

        return name, keep

    layers = sorted({head.layer for head in heads})
    names = [f"blocks.{n}.attn.hook_{what}" for n in layers for what in ("pattern", "v")]
    last_logits(model, tokens, [see(name) for name in names])
    found = []
    for head in heads:
        pattern = seen[f"blocks.{head.layer}.attn.hook_pattern"][:, head.number]
        reader = readers.heads[head.layer, head.number]
        value = seen[f"blocks.{head.layer}.attn.hook_v"]
        value = value.reshape(*value.shape[:2], -1, len(reader))
        group = head.number * value.shape[2] // readers.heads.shape[1]
        found.append(pattern * (value[:, :, group] @ reader))
    return found


def position_parts(pair: Pair, side: int, length: int) -> list[str]:
    """The part that each position of one side's prompt plays; "" for padding, `phrase` for tokens
    of the phrase that the other prompt has no partner for."""
    found = [""] * (length - pair.lengths[side]) + ["phrase"] * pair.lengths[side]
    for role, at in pair.roles.items():
        found[at[side]] = _part(role)
    return found


# --------------------------------------------------------------------------------------------------
# What the rows come to: a row a part, and beside the table what adds up, what is enough, and gates.


UNIT = ["kind", "layer", "unit"]

Numbers = dict[tuple[Any, ...], NDArray[np.float64]]
"""What is named by a tuple of labels, for every pair in order."""


def _numbers(rows: pd.DataFrame, names: Sequence[str]) -> Numbers:
    """The scores of every group of rows with these labels; a number that is missing is -1."""
    numbers = {"layer", "unit", "seed"} & set(names)
    whole = {name: rows[name].fillna(-1).astype(int) for name in numbers}
    texts = {name: rows[name].fillna("") for name in names if name not in numbers}
    grouped: Any = rows.assign(**whole, **texts).groupby(list(names), sort=False)["score"]
    return {tuple(key): part.to_numpy() for key, part in grouped}


def summarise_decomposition(
    rows: pd.DataFrame, p_values: Mapping[Unit, float], seed: int = 0, role: str = LAST_ROLE
) -> pd.DataFrame:
    """A row per part, the largest share of the refused-minus-complied difference first.

    `write_refused` and `write_complied` are means over pairs; `share` is the part's difference over
    that of the whole, with its bootstrap interval over pairs; `p_shuffled` that of labels permuted
    within pairs, for all units. Of the units that were replaced: `top_source_role`, the part of the
    prompt that its difference is read from; `d_projection` and `d_score_denoise`, `d_score_noise`,
    what the patch changed on average (`_lo`, `_hi` its interval); `same_class`, `norm_matched`,
    `mean_by_role` and `knockout`, what these did to the score, denoising (`knockout` noising);
    `attribution`, the tangent of `d_score_denoise`; `p_score`, that of the patch against another
    prompt of the same side, by sign flips, corrected (Holm) for the units; and `repair`.
    """
    # 1. What each part writes on both sides, and its share of the whole difference.
    written = _numbers(rows[rows["measure"] == "write"], ["way", *UNIT])
    refused, complied = SIDES
    whole = written[refused, "total", -1, -1] - written[complied, "total", -1, -1]
    draws = np.random.default_rng(seed).integers(0, len(whole), (1000, len(whole)))
    totals = whole[draws].mean(1)
    replaced = _replacements(rows, seed)
    records = []
    for way, kind, layer, number in written:
        if way != refused or kind == "total":
            continue
        one, other = (written[side, kind, layer, number] for side in SIDES)
        shares = (one - other)[draws].mean(1) / totals
        record: dict[str, Any] = {
            "layer": None if layer < 0 else layer,
            "kind": kind,
            "unit": None if number < 0 else number,
            "dest_role": role,
            "n": len(whole),
            "write_refused": one.mean(),
            "write_complied": other.mean(),
            "share": (one - other).mean() / whole.mean(),
            "share_lo": np.quantile(shares, 0.025),
            "share_hi": np.quantile(shares, 0.975),
        }
        # 2. Of a unit: whether labels permuted explain it, and what replacing it did.
        if kind in ("head", "neuron"):
            unit = Unit(kind, layer, number)
            record |= {"p_shuffled": p_values.get(unit, np.nan), **replaced.get(unit, {})}
            if "d_projection" in record and (direct := (one - other).mean()) != 0:
                record["repair"] = 1 - record["d_projection"] / direct
        records.append(record)
    summary = pd.DataFrame(records).reindex(columns=list(DECOMPOSITION))
    summary["p_score"] = holm(summary["p_score"].to_numpy(dtype=float))
    for name in ("layer", "unit"):
        summary[name] = summary[name].astype("Int64")
    order = summary["share"].abs().sort_values(ascending=False, kind="stable").index
    return summary.loc[order].reset_index(drop=True)


def _replacements(rows: pd.DataFrame, seed: int) -> dict[Unit, dict[str, Any]]:
    """Of every unit that was replaced, what each replacement changed."""
    cells = _numbers(rows[rows["kind"] != "set"], ["measure", "way", "direction", *UNIT])
    base = _unreplaced(rows)
    sources = _numbers(rows[rows["measure"] == "source"], [*UNIT, "way", "role"])
    found: dict[Unit, dict[str, Any]] = {}
    for measure, way, direction, *unit in list(cells):
        if (measure, way, direction) != ("score", "denoise", "patch"):
            continue
        one, same, random, mean = (
            cells["score", "denoise", name, *unit] - base["score", "denoise"]
            for name in ("patch", "same_class", "random", "mean")
        )
        other, zero = (
            cells["score", "noise", name, *unit] - base["score", "noise"]
            for name in ("patch", "zero")
        )
        along = cells["projection", "denoise", "patch", *unit] - base["projection", "denoise"]
        tangent = cells["attribution", "denoise", "patch", *unit] - base["score", "denoise"]
        (low, high), (other_low, other_high) = mean_interval(np.stack([one, other]), seed=seed)
        found[Unit(*unit)] = {
            "d_projection": along.mean(),
            **{"d_score_denoise": one.mean(), "d_score_denoise_lo": low},
            **{"d_score_denoise_hi": high, "d_score_noise": other.mean()},
            **{"d_score_noise_lo": other_low, "d_score_noise_hi": other_high},
            "p_score": sign_flip_p(one - same, seed)[0],
            "same_class": same.mean(),
            "norm_matched": random.mean(),
            "mean_by_role": mean.mean(),
            "knockout": zero.mean(),
            "attribution": tangent.mean(),
        }
        read = {
            key[-1]: abs((value - sources[*unit, SIDES[1], key[-1]]).mean())
            for key, value in sources.items()
            if list(key[:4]) == [*unit, SIDES[0]]
        }
        if read:
            found[Unit(*unit)]["top_source_role"] = max(read, key=lambda role: read[role])
    return found


def _unreplaced(rows: pd.DataFrame) -> Numbers:
    """By measure and way, the run in which nothing was replaced: of `denoise` the complied prompt
    as it is, of `noise` the refused one."""
    return _numbers(rows[rows["direction"] == "baseline"], ["measure", "way"])


MOST_GATES = 20


def decomposition_record(
    rows: pd.DataFrame, summary: pd.DataFrame, opened: Decomposition, seed: int
) -> dict[str, Any]:
    """Beside the table: how exactly the parts add up; `curve`, what share the first k units have
    together; `together` and `enough`, what the set of replaced units moves or keeps of the gap,
    beside random sets of its size; `gates`, the heads whose interchange changes later units most,
    with p for all of the table (max-T over sign flips); `sources`, what every replaced head writes
    by the part of the prompt that it reads from."""
    units = summary[summary["kind"].isin(("head", "neuron"))]
    sources = _numbers(rows[rows["measure"] == "source"], ["layer", "unit", "role", "way"])
    record = {
        "completeness": completeness(*opened.writes),
        "gap_projection": float((opened.writes[0].total - opened.writes[1].total).mean()),
        "residual_norm": opened.study.residual_norm(opened.layer),
        "n_pairs": len(opened.pairs),
        "curve": units["share"].cumsum().head(100).tolist(),
        "together": _sets_moved(rows),
        "enough": _sets_kept(rows),
        "gates": _gates_found(rows, seed),
        "sources": [
            {"head": f"{layer}.{number}", "role": role, "way": way, "write": float(value.mean())}
            for (layer, number, role, way), value in sources.items()
        ],
    }
    return dict(without_nan(record))


def _sets_moved(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean share of the gap that patching a set of units moves, each way."""
    sets = rows[rows["direction"].isin(("top", "random_set"))]
    sets, ends = sets[sets["measure"].isin(("score", "projection"))], _unreplaced(rows)
    found = []
    for (measure, way, name, number), value in _numbers(
        sets, ["measure", "way", "direction", "seed"]
    ).items():
        low, high = (ends[measure, end].mean() for end in WAY_RUNS)
        share = _share(value.mean() - low, high - low)
        share = share if way == "denoise" or share is None else 1 - share
        found.append({"measure": measure, "way": way, "set": name, "seed": number, "share": share})
    return found


def _sets_kept(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean share of the gap that is left where all but a set is the complied prompt's."""
    kept = rows[rows["measure"].isin(("kept_score", "kept_projection"))]
    found, ends = [], _unreplaced(rows)
    for (name, set_name, number), value in _numbers(kept, ["measure", "direction", "seed"]).items():
        measure = name.removeprefix("kept_")
        low, high = (ends[measure, end].mean() for end in WAY_RUNS)
        share = _share(value.mean() - low, high - low)
        found.append({"measure": measure, "set": set_name, "seed": number, "share": share})
    return found


def _share(part: float, whole: float) -> float | None:
    return None if whole == 0 else float(part / whole)


def _gates_found(rows: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    gated = _numbers(rows[rows["measure"] == "gate"], ["layer", "unit", "later"])
    if not gated:
        return []
    names, values = list(gated), np.stack(list(gated.values()))
    p_values = sign_flip_max_p(values, seed)
    order = np.argsort(-np.abs(values.mean(1)), kind="stable")[:MOST_GATES]
    return [
        {
            "head": f"{names[i][0]}.{names[i][1]}",
            "later": names[i][2],
            "change": float(values[i].mean()),
            "p": float(p_values[i]),
            "n": values.shape[1],
        }
        for i in order
    ]


# --------------------------------------------------------------------------------------------------
# The run.


def conduct_decomposition(
    study: Study, flags: DecompositionFlags, given: Direction | None = None
) -> tuple[Run, pd.DataFrame]:
    """Take the direction apart into a run folder; the run and its summary."""
    opened = study_decomposition(study, flags, given)
    settings = study_settings(study, flags) | {
        "layer": [opened.layer],
        "pos": opened.pos,
        "pairs": {"used": len(opened.pairs)},
    }
    run = begin("decompose_direction", settings, flags, {"direction": opened.direction})
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    plan = DecompositionPlan(opened, budget, flags.seed, flags.n_random, flags.gate_pairs)

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_decomposition(rows, opened.p_values, flags.seed, opened.role)
        return summary, decomposition_record(rows, summary, opened, flags.seed)

    return carry_out(run, opened, plan, close, flags)
