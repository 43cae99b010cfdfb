"""Activation patching: write an activation of one run into another, and see how much comes along.

    effect = (score - corrupted) / (clean - corrupted)

0 is the corrupted run and 1 the clean one, whichever is patched. Denoising runs the corrupted
prompt and writes clean activations into it, so what does nothing stays at 0; noising runs the clean
prompt and writes corrupted ones, so what does nothing stays at 1. Beside every effect stand two
controls written at the same place: the activation of another prompt of the same class as the run,
and a random vector as far from the run's own activation (`patching_controls`).

This module turns places and pairs into hooks, and scores into rows. It does not write files, and it
does not know which places are worth asking about (`places`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.engine import Scorer, score_grid
from refusal_dial.hooks import patch
from refusal_dial.patching.controls import as_far, donors, unit_noise
from refusal_dial.patching.pairs import Pairs
from refusal_dial.patching.places import Place
from refusal_dial.patching.rows import CONTROLS, labelled, tidy
from refusal_dial.patching.sides import Rows, Side, alike
from refusal_dial.sweep import Budget, spread
from refusal_dial.types import Hook

WAYS = {"denoise": (1, 0), "noise": (0, 1)}
"""(the side that is run, the side its patches come from): 0 = clean, 1 = corrupted."""
Source = Callable[[Place, Tensor], tuple[Tensor, Tensor]]
"""A place and the run's own activation there, to what is written and which pairs have it."""
VALUES = 2**28
"""Bytes of patched values held at once."""


@dataclass(frozen=True, eq=False)
class Patching:
    """What to patch: places, in which pairs, which way round, with controls drawn by `seed`."""

    pairs: Pairs
    places: Sequence[Place]
    ways: Sequence[str] = ("denoise",)
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def batches(self, skip: int = 0) -> Iterator[range]:
        """The pairs of each batch."""
        size, n = self.budget.batch_size, len(self.pairs)
        return (range(i, min(i + size, n)) for i in range(skip * size, n, size))

    def divided(self, prompts: int, cells: int) -> Patching:
        """The first pairs at so many places from all over."""
        places = [self.places[i] for i in spread(len(self.places), cells)]
        return replace(self, pairs=self.pairs.chosen(range(prompts)), places=places)

    def sizes(self) -> list[int]:
        """Rows that each batch yields, in order."""
        total = np.zeros(len(self.pairs), dtype=int)
        for roles in dict.fromkeys(place.roles for place in self.places):
            here = sum(place.roles == roles for place in self.places)
            has = [all(pair.where(role) for role in roles) for pair in self.pairs.items]
            for way in self.ways:
                lent = donors(self.pairs, roles, WAYS[way][0], self.seed) >= 0
                total += here * (2 * np.array(has) + lent)
        return [int(total[rows.start : rows.stop].sum()) for rows in self.batches()]


def patched(model: TransformerBridge, patching: Patching, scorer: Scorer) -> pd.DataFrame:
    """A row per pair and cell, `COLUMNS`: every place, patched each way, with its controls.

    `score` is that of the patched run, `clean` and `corrupted` those of the two runs as they are;
    `pos` is where the role stands in the run. A pair that lacks a role has no row there.
    """
    return pd.concat(patch_batches(model, patching, scorer), ignore_index=True)


def patch_batches(
    model: TransformerBridge, patching: Patching, scorer: Scorer, skip: int = 0
) -> Iterator[pd.DataFrame]:
    """`patched`, a frame per batch of pairs, without the first `skip`, which were done before."""
    patching = replace(patching, pairs=patching.pairs.on(model))
    for rows in patching.batches(skip):
        frames = [
            _one_way(model, patching, rows, part, scorer, way)
            for way in patching.ways
            for part in _parts(model, patching.places, len(rows))
        ]
        yield labelled(pd.concat(frames, ignore_index=True), patching.pairs, model.tokenizer)


def _parts(model: TransformerBridge, places: Sequence[Place], n: int) -> Iterator[Sequence[Place]]:
    """The places, as many at once as their values for n pairs fit into `VALUES`."""
    d_model, d_head = int(model.cfg.d_model), int(model.cfg.d_head)
    widths = {"z": d_head, "mlp_post": 1}
    numbers = sum(widths.get(p.site, d_model) * len(p.roles) for p in places) * n
    each = 4 * (1 + len(CONTROLS)) * numbers / len(places)
    step = max(1, int(VALUES // each))
    return (places[i : i + step] for i in range(0, len(places), step))


@dataclass(frozen=True, eq=False)
class Cell:
    """What is written at one place into each pair's run, and which pairs have it."""

    place: Place
    direction: str
    hooks: Sequence[Hook]
    present: Bool[Tensor, " batch"]
    moves: Bool[Tensor, " batch"]  # where the value differs from the run's own, bit for bit


def _one_way(
    model: TransformerBridge,
    patching: Patching,
    rows: range,
    places: Sequence[Place],
    scorer: Scorer,
    way: str,
) -> pd.DataFrame:
    run, source = WAYS[way]
    batch, budget = patching.pairs.chosen(rows), patching.budget
    score = partial(score_grid, model, engine=budget.engine, memory_gb=budget.memory_gb)
    roles = list(dict.fromkeys(role for place in places for role in place.roles))
    here, there = Side.of(batch, roles, run), Side.of(batch, roles, source)
    cells = list(_cells(model, patching, rows, places, here, there, run))
    live = [i for i, cell in enumerate(cells) if cell.hooks]
    base, *scores = score(here.tokens, [(), *(cells[i].hooks for i in live)], scorer)
    other = score(there.tokens, [()], scorer)[0]
    table = base.repeat(len(cells), 1)
    for i, row in zip(live, scores, strict=True):
        table[i] = torch.where(cells[i].moves, row, base)
    ends = (other, base) if way == "denoise" else (base, other)
    names = [(cell.place, cell.direction, cell.present.numpy()) for cell in cells]
    clean, corrupted = (end.numpy() for end in ends)
    seed = patching.seed
    return tidy(batch, roles, here.where, way, names, table.numpy(), clean, corrupted, seed)


def _cells(
    model: TransformerBridge,
    patching: Patching,
    rows: range,
    places: Sequence[Place],
    here: Side,
    there: Side,
    run: int,
) -> Iterator[Cell]:
    """Place by place, the patch and its two controls."""
    own = here.read(model, places)
    values = {"patch": from_run(model, places, here, there)}
    values["same_class"] = _from_class(model, patching, rows, places, here, run)
    values["random"] = _from_sphere(patching, rows, here, values["patch"])
    for place in places:
        columns, before = here.at(place), own.of(place)
        for direction, source in values.items():
            value, present = source(place, before)
            value = torch.where(_on(present[:, None], before), value, before)
            moves = (value != before).any(-1).any(-1).cpu()
            hooks: Sequence[Hook] = ()
            if bool(moves.any()):
                hooks = _hooks(place, own, value, here.where[:, columns])
            yield Cell(place, direction, hooks, present, moves)


def from_run(model: TransformerBridge, places: Sequence[Place], here: Side, there: Side) -> Source:
    """Values of the pair's other prompt, in every pair that has the roles."""
    far, same = there.read(model, places), alike(here, there)

    def source(place: Place, own: Tensor) -> tuple[Tensor, Tensor]:
        columns = here.at(place)
        value = torch.where(_on(same[:, columns], own), own, far.of(place))
        return value, (here.where[:, columns] < 0).all(1)

    return source


def _from_class(
    model: TransformerBridge,
    patching: Patching,
    rows: range,
    places: Sequence[Place],
    here: Side,
    run: int,
) -> Source:
    """Values of another prompt of the run's class, in the pairs that have one."""
    pairs, seed = patching.pairs, patching.seed
    who, same = {}, {}
    for roles in dict.fromkeys(place.roles for place in places):
        found = donors(pairs, roles, run, seed)[rows.start : rows.stop]
        who[roles] = torch.from_numpy(found)
        giving = np.where(found < 0, rows, found).tolist()
        same[roles] = alike(here, Side.of(pairs.chosen(giving), here.roles, run))
    givers = sorted({i for found in who.values() for i in found.tolist() if i >= 0})
    lent = Side.of(pairs.chosen(givers or [0]), here.roles, run).read(model, places)

    def source(place: Place, own: Tensor) -> tuple[Tensor, Tensor]:
        found = who[place.roles]
        index = torch.tensor([givers.index(i) if i >= 0 else 0 for i in found.tolist()])
        shared = _on(same[place.roles][:, here.at(place)], own)
        return torch.where(shared, own, lent.of(place)[index.to(own.device)]), found >= 0

    return source


def _from_sphere(patching: Patching, rows: range, here: Side, like: Source) -> Source:
    """Random values, as far from the run's own as those of `like` are."""

    def source(place: Place, own: Tensor) -> tuple[Tensor, Tensor]:
        value, present = like(place, own)
        unit = unit_noise(place, len(patching.pairs), own.shape[-1], patching.seed)
        return as_far(own, value, unit[rows.start : rows.stop]), present

    return source


def _on(rows: Bool[Tensor, "batch k"], like: Tensor) -> Tensor:
    return rows[:, :, None].to(like.device)


def _hooks(
    place: Place,
    own: Rows,
    value: Float[Tensor, "batch k width"],
    where: Int[Tensor, "batch k"],
) -> list[Hook]:
    """Patches of the roles: at fixed positions where they are the same in all pairs.

    TransformerLens's hook_resid_mid is what the MLP reads, and an edit there never enters the
    stream. The stream becomes `value` when attention adds `value - resid_pre`.
    """
    site = place.site
    if site == "resid_mid":
        site, value = "attn_out", value - own.of(replace(place, site="resid_pre"))
    where, k = torch.where(where < 0, where, -1), where.shape[1]
    write = partial(patch, layer=place.layer, site=site, head=place.head, neuron=place.neuron)
    if not bool((where == where[0]).all()):
        return [write(value[:, i], pos=where[:, i]) for i in range(k)]
    at = tuple(where[0].tolist())
    return [write(value, pos=at) if k > 1 else write(value[:, 0], pos=at[0])]
