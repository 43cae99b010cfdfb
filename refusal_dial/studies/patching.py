"""Activation patching on matched pairs: which activation, written into the other run, carries
refusal.

    effect = (score of the patched run - corrupted) / (clean - corrupted)

In this file: places to patch, one run of a batch of pairs, controls (another prompt of the same
class, a random vector as far away), exact patches, their estimate from one gradient (attribution),
and the run.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cli.flags import PatchingFlags
from refusal_dial.common import DialError, Hook, hook_name, log, progress
from refusal_dial.data.prompts import pairs as by_pair
from refusal_dial.engine import slopes
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.hooks import patch
from refusal_dial.model.activations import collect_rows
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import (
    Budget,
    Grid,
    Known,
    Parts,
    Task,
    batches,
    compute_all,
    grid_of,
    some_of,
)
from refusal_dial.stats.summary import ROW_KEYS
from refusal_dial.studies.base import Study, study_settings
from refusal_dial.studies.pairs import (
    Pairs,
    common_prefix,
    far_apart,
    match,
    positions_of,
    role_order,
    token_labels,
    unpadded,
)
from refusal_dial.studies.patching_summary import (
    attribution_agreement,
    patching_verdict,
    summarise_patching,
)

# --------------------------------------------------------------------------------------------------
# Where to patch: layers, sites, roles, heads and neurons, laid out as a list of places.
#
# `lay_out` is the one layout; what experiments ask for is `lay_out` with some of it fixed.


BLOCK_SITES = ("resid_pre", "resid_mid", "attn_out", "mlp_out")

LAST_ROLE = "end-1"


@dataclass(frozen=True)
class Place:
    """One activation, or the same activation at several roles that are patched together."""

    layer: int
    site: str
    roles: tuple[str, ...]
    head: int | None = None
    neuron: int | None = None

    @property
    def role(self) -> str:
        """The role, or the first and the last of several."""
        return self.roles[0] if len(self.roles) == 1 else f"{self.roles[0]}..{self.roles[-1]}"


def sites_of(model: TransformerBridge) -> tuple[str, ...]:
    """Those of `BLOCK_SITES` that this architecture has."""
    return tuple(site for site in BLOCK_SITES if hook_name(site, 0) in model.hook_dict)


def describe(model: TransformerBridge, places: Sequence[Place]) -> str:
    """How many places, at which sites; and which sites were skipped where every one was meant."""
    sites = list(dict.fromkeys(place.site for place in places))
    layers = sorted({place.layer for place in places})
    span = str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    text = f"{len(places)} place{'s' * (len(places) > 1)}: {', '.join(sites)} in layers {span}"
    lacking = [site for site in BLOCK_SITES if site not in sites_of(model)]
    if lacking and set(sites) >= set(sites_of(model)):
        name = type(model.original_model).__name__
        text += f"; {name} has no {' and no '.join(lacking)}: skipped"
    return text


def lay_out(
    model: TransformerBridge,
    pairs: Pairs,
    *,
    sites: Sequence[str] | None = None,
    layers: Sequence[int] = (),
    roles: Sequence[str] | None = (LAST_ROLE,),
) -> list[Place]:
    """Every layer x site x role; z by head, mlp_post by neuron.

    No layers means all of them, `sites=None` every residual, attention and MLP site the model has,
    `roles=None` every role of these pairs. Raises `DialError` for a layer or site it lacks.
    """
    layers = check_layers(model, layers or range(int(model.cfg.n_layers)))
    sites = sites_of(model) if sites is None else [check_site(model, site) for site in sites]
    roles = pairs.roles() if roles is None else sorted(roles, key=role_order)
    return [
        Place(layer, site, (role,), head, neuron)
        for layer in layers
        for site in sites
        for role in roles
        for head in (range(int(model.cfg.n_heads)) if site == "z" else [None])
        for neuron in (range(int(model.cfg.d_mlp)) if site == "mlp_post" else [None])
    ]


by_role = partial(lay_out, sites=("resid_pre",), roles=None)


def last_k(
    model: TransformerBridge,
    pairs: Pairs,
    k: int,
    *,
    site: str = "resid_pre",
    layers: Sequence[int] = (),
) -> list[Place]:
    """Each of the last k positions alone, then all k together, layer by layer.

    Raises `DialError` where a prompt has fewer than k tokens.
    """
    shortest = min(min(pair.lengths) for pair in pairs.items)
    if not 1 <= k <= shortest:
        raise DialError(f"k must be from 1 to the shortest prompt's {shortest} tokens, not {k}")
    roles = tuple(f"end-{i}" for i in range(k, 0, -1))
    alone = lay_out(model, pairs, sites=(site,), layers=layers, roles=roles)
    if k == 1:
        return alone
    together = [Place(layer, site, roles) for layer in dict.fromkeys(p.layer for p in alone)]
    return sorted([*alone, *together], key=lambda place: place.layer)


# --------------------------------------------------------------------------------------------------
# One side of a batch of pairs: its run's tokens, where the roles stand in it, and what is there.
#
# Activations are read by place, so that patching and its gradient approximation speak of the same
# rows.


@dataclass(frozen=True, eq=False)
class PairRun:
    """One run of a batch of pairs: its tokens, and where each role stands in them."""

    roles: Sequence[str]
    tokens: Tokens
    where: Int[Tensor, "batch role"]  # 0 where a pair lacks the role

    @classmethod
    def of(cls, pairs: Pairs, roles: Sequence[str], side: int) -> PairRun:
        """The clean (0) or corrupted (1) runs of these pairs."""
        where = torch.stack([positions_of(pairs, role, side) for role in roles], 1)
        return cls(roles, (pairs.clean, pairs.corrupted)[side], where)

    def at(self, place: Place) -> list[int]:
        """The columns of the place's roles."""
        return [self.roles.index(role) for role in place.roles]

    def read(self, model: TransformerBridge, places: Sequence[Place]) -> RunActivations:
        """The activations of these places; of the last token where a pair lacks the role."""
        keys = dict.fromkeys((place.site, place.layer) for place in places)
        keys |= dict.fromkeys(("resid_pre", layer) for site, layer in keys if site == "resid_mid")
        last = torch.where(self.where < 0, self.where, -1)
        return RunActivations(self, collect_rows(model, self.tokens, keys, last))


@dataclass(frozen=True, eq=False)
class RunActivations:
    """Activations "batch role *width" of one side, by (site, layer)."""

    side: PairRun
    held: dict[tuple[str, int], Tensor]

    def of(self, place: Place) -> Float[Tensor, "batch k width"]:
        rows = self.held[place.site, place.layer][:, self.side.at(place)]
        if place.head is not None:
            return rows[:, :, place.head]
        return rows if place.neuron is None else rows[:, :, place.neuron : place.neuron + 1]


def same_prefix(one: PairRun, other: PairRun) -> Bool[Tensor, "batch role"]:
    """Where two runs have read the same tokens, up to and including the role's.

    A causal model computes the same there in both, but for rounding.
    """
    texts = zip(unpadded(one.tokens), unpadded(other.tokens), strict=True)
    shared = torch.tensor([[common_prefix(a, b), len(a), len(b)] for a, b in texts])
    first, second = one.where + shared[:, 1:2], other.where + shared[:, 2:]
    present = (one.where < 0) & (other.where < 0)
    return present & (first == second) & (first < shared[:, :1])


# --------------------------------------------------------------------------------------------------
# Controls for patching: what to write instead of the other prompt's activation.
#
# Another prompt of the same class as the run that is patched, or a random vector as far from the
# run's own activation as the patched one is.


def donors(pairs: Pairs, roles: Sequence[str], side: int, seed: int) -> NDArray[np.int64]:
    """For each pair another one, whose prompt of this side has the same subset and all the roles.

    Each class is put in a seeded order, and the next pair in it that has the roles gives to the one
    before: every prompt gives once, so a class has the same mean before and after. -1 where a pair
    lacks a role or is the only one of its class to have them all.
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(pairs)):
        pair = pairs.items[i]
        if all(pair.where(role) is not None for role in roles):
            classes[(pair.clean, pair.corrupted)[side].subset].append(int(i))
    found = np.full(len(pairs), -1)
    for members in classes.values():
        if len(members) > 1:
            found[members] = np.roll(members, -1)
    return found


def unit_noise(place: Place, n: int, width: int, seed: int) -> Float[Tensor, "n k width"]:
    """n x k independent unit vectors, uniform on the sphere (on ±1 for a single neuron).

    Drawn from a generator of the place's own: the same whatever else is patched, in any batches.
    """
    key = f"{seed}/{place.layer}/{place.site}/{place.role}/{place.head}/{place.neuron}"
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    drawn = torch.randn(n, len(place.roles), width, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def as_far(
    own: Float[Tensor, "batch k width"],
    value: Float[Tensor, "batch k width"],
    unit: Float[Tensor, "batch k width"],
) -> Float[Tensor, "batch k width"]:
    """`own + |value - own| u`: what is written lies as far from the run's own activation as the
    value does, in a random direction. Equal to `own` where the value is."""
    distance = (value.float() - own.float()).norm(dim=-1, keepdim=True)
    return (own.float() + distance * unit.to(own.device)).to(own.dtype)


# --------------------------------------------------------------------------------------------------
# Rows of a patching experiment: one per pair and cell, the public columns first.


PATCH_CONTROLS = ("same_class", "random")

PATCH_COLUMNS = [
    *ROW_KEYS,
    "score",
    "way",
    "role",
    "head",
    "neuron",
    "clean",
    "corrupted",
    "effect",
    "token",
]


def tidy(
    batch: Pairs,
    roles: Sequence[str],
    where: Int[Tensor, "batch role"],
    way: str,
    cells: Sequence[tuple[Place, str, NDArray[np.bool_]]],
    scores: NDArray[np.float64],
    clean: NDArray[np.float64],
    corrupted: NDArray[np.float64],
    seed: int,
) -> pd.DataFrame:
    """Scores "cell pair" as rows, cell by cell, for the pairs that each cell has.

    A cell is named by its place and its direction; `where` says where the roles stand in the runs
    that were patched.
    """
    columns: dict[str, list[Any]] = {name: [] for name in PATCH_COLUMNS[:-1]}
    positions = where.numpy()
    ids = np.array([pair.id for pair in batch.items], dtype=object)
    subsets = np.array([pair.corrupted.subset for pair in batch.items], dtype=object)
    gap = clean - corrupted
    for (place, direction, present), score in zip(cells, scores, strict=True):
        index = np.flatnonzero(present)
        alone = len(place.roles) == 1
        pos = positions[index, roles.index(place.role)].tolist() if alone else [None] * len(index)
        each = {
            "pos": pos,
            "prompt_id": ids[index],
            "subset": subsets[index],
            "score": score[index],
            "clean": clean[index],
            "corrupted": corrupted[index],
            "effect": _share(score[index] - corrupted[index], gap[index]),
        }
        same = {
            "direction": direction,
            "seed": seed if direction in PATCH_CONTROLS else None,
            "layer": place.layer,
            "site": place.site,
            "alpha": None,
            "split": "holdout",
            "way": way,
            "role": place.role,
            "head": place.head,
            "neuron": place.neuron,
        }
        for name in PATCH_COLUMNS[:-1]:
            columns[name] += list(each[name]) if name in each else [same[name]] * len(index)
    kinds = dict.fromkeys(("seed", "layer", "pos", "head", "neuron"), "Int64") | {"alpha": "float"}
    return pd.DataFrame({k: pd.Series(v, dtype=kinds.get(k)) for k, v in columns.items()})


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where there is nothing to share."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def with_token_labels(frame: pd.DataFrame, pairs: Pairs, tokenizer: Any) -> pd.DataFrame:
    """The rows with `token`, the text of their role's token where all pairs share it."""
    names = [role for role in frame["role"].unique() if ".." not in role]
    texts = token_labels(pairs, names, tokenizer)
    return frame.assign(token=frame["role"].map(texts).fillna(""))


# --------------------------------------------------------------------------------------------------
# Activation patching: write an activation of one run into another, and see how much comes along.
#
#     effect = (score - corrupted) / (clean - corrupted)
#
# 0 is the corrupted run and 1 the clean one, whichever is patched. Denoising runs the corrupted
# prompt and writes clean activations into it, so what does nothing stays at 0; noising runs the
# clean prompt and writes corrupted ones, so what does nothing stays at 1. Beside every effect stand
# two controls written at the same place: the activation of another prompt of the same class as the
# run, and a random vector as far from the run's own activation (`patching_controls`).


WAY_RUNS = {"denoise": (1, 0), "noise": (0, 1)}
"""(the side that is run, the side its patches come from): 0 = clean, 1 = corrupted."""

Source = Callable[[Place, Tensor], tuple[Tensor, Tensor]]
"""A place and the run's own activation there, to what is written and which pairs have it."""

TASK_ROWS = 2**12
"""Rows of a task, about: what is lost when a run is killed, and how often its bar moves."""

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

    def sizes(self) -> NDArray[np.int64]:
        """Rows that each pair makes."""
        total = np.zeros(len(self.pairs), dtype=int)
        for roles in dict.fromkeys(place.roles for place in self.places):
            here = sum(place.roles == roles for place in self.places)
            has = [all(pair.where(role) for role in roles) for pair in self.pairs.items]
            for way in self.ways:
                lent = donors(self.pairs, roles, WAY_RUNS[way][0], self.seed) >= 0
                total += here * (2 * np.array(has) + lent)
        return total


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """A row per pair and cell, `PATCH_COLUMNS`: every place, patched each way, with its controls.

    `score` is that of the patched run, `clean` and `corrupted` those of the two runs as they are;
    `pos` is where the role stands in the run. A pair that lacks a role has no row there.
    """

    patching: Patching
    scorer: Scorer

    @property
    def tasks(self) -> list[Task]:
        """Some pairs at some places, about `TASK_ROWS` of them."""
        found, size = [], self.patching.budget.batch_size
        some = max(1, TASK_ROWS // ((1 + len(PATCH_CONTROLS)) * len(self.patching.ways) * size))
        parts = batches(len(self.patching.places), some)
        sizes = [
            replace(self.patching, places=self.patching.places[part.start : part.stop]).sizes()
            for part in parts
        ]
        for pairs in batches(len(self.patching.pairs), size):
            rows = [int(here[pairs.start : pairs.stop].sum()) for here in sizes]
            found += [Task(n, pairs, part) for n, part in zip(rows, parts, strict=True) if n]
        return found

    @property
    def grid(self) -> Grid:
        """The cells are places; each is patched every way, and beside it stand two controls."""
        ways, beside = ", ".join(self.patching.ways), ", ".join(PATCH_CONTROLS)
        names = ("layer", "site", "role", "head", "neuron")
        labels = [
            {name: getattr(one, name) for name in names} | {"way": ways, "beside": beside}
            for one in self.patching.places
        ]
        return grid_of({"pairs": len(self.patching.pairs)}, labels)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        places = self.patching.places[task.cells.start : task.cells.stop]
        patching = replace(self.patching, pairs=self.patching.pairs.on(model), places=places)
        frames = [
            _one_way(model, patching, task.prompts, part, self.scorer, way)
            for way in patching.ways
            for part in _parts(model, patching.places, len(task.prompts))
        ]
        frame = pd.concat(frames, ignore_index=True)
        return with_token_labels(frame, patching.pairs, model.tokenizer)

    def shrink(self, prompts: int, cells: int) -> PatchPlan:
        patching = replace(
            self.patching,
            pairs=self.patching.pairs.chosen(range(prompts)),
            places=some_of(self.patching.places, cells),
        )
        return replace(self, patching=patching)

    def memory(self, model: TransformerBridge) -> float:
        return self.patching.budget.memory(model)

    def estimate(self, model: TransformerBridge) -> pd.DataFrame:
        """The patches as the gradient has them (see `run.preview`), with `base`."""
        patching = replace(self.patching, pairs=self.patching.pairs.on(model))
        rows = pd.concat(list(attributed(model, patching, self.scorer)), ignore_index=True)
        base = rows["corrupted"].where(rows["way"] == "denoise", rows["clean"])
        return rows.assign(direction="patch", base=base)


def patched(model: TransformerBridge, patching: Patching, scorer: Scorer) -> pd.DataFrame:
    """The rows of a `PatchPlan`."""
    return compute_all(model, PatchPlan(patching, scorer))


def _parts(model: TransformerBridge, places: Sequence[Place], n: int) -> Iterator[Sequence[Place]]:
    """The places, as many at once as their values for n pairs fit into `VALUES`."""
    d_model, d_head = int(model.cfg.d_model), int(model.cfg.d_head)
    widths = {"z": d_head, "mlp_post": 1}
    numbers = sum(widths.get(p.site, d_model) * len(p.roles) for p in places) * n
    each = 4 * (1 + len(PATCH_CONTROLS)) * numbers / len(places)
    step = max(1, int(VALUES // each))
    return (places[i : i + step] for i in range(0, len(places), step))


@dataclass(frozen=True, eq=False)
class PatchCell:
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
    run, source = WAY_RUNS[way]
    batch, budget = patching.pairs.chosen(rows), patching.budget
    score = partial(score_grid, model, engine=budget.engine, memory_gb=budget.memory_gb)
    roles = list(dict.fromkeys(role for place in places for role in place.roles))
    here, there = PairRun.of(batch, roles, run), PairRun.of(batch, roles, source)
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
    here: PairRun,
    there: PairRun,
    run: int,
) -> Iterator[PatchCell]:
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
            yield PatchCell(place, direction, hooks, present, moves)


def from_run(
    model: TransformerBridge, places: Sequence[Place], here: PairRun, there: PairRun
) -> Source:
    """Values of the pair's other prompt, in every pair that has the roles."""
    far, same = there.read(model, places), same_prefix(here, there)

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
    here: PairRun,
    run: int,
) -> Source:
    """Values of another prompt of the run's class, in the pairs that have one."""
    pairs, seed = patching.pairs, patching.seed
    who, same = {}, {}
    for roles in dict.fromkeys(place.roles for place in places):
        found = donors(pairs, roles, run, seed)[rows.start : rows.stop]
        who[roles] = torch.from_numpy(found)
        giving = np.where(found < 0, rows, found).tolist()
        same[roles] = same_prefix(here, PairRun.of(pairs.chosen(giving), here.roles, run))
    givers = sorted({i for found in who.values() for i in found.tolist() if i >= 0})
    lent = PairRun.of(pairs.chosen(givers or [0]), here.roles, run).read(model, places)

    def source(place: Place, own: Tensor) -> tuple[Tensor, Tensor]:
        found = who[place.roles]
        index = torch.tensor([givers.index(i) if i >= 0 else 0 for i in found.tolist()])
        shared = _on(same[place.roles][:, here.at(place)], own)
        return torch.where(shared, own, lent.of(place)[index.to(own.device)]), found >= 0

    return source


def _from_sphere(patching: Patching, rows: range, here: PairRun, like: Source) -> Source:
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
    own: RunActivations,
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


# --------------------------------------------------------------------------------------------------
# Attribution patching: what every patch would do, all at once, from one gradient.
#
#     score ≈ score of the run + (value - own) · d score / d own
#
# The tangent to activation patching at the run's own activation (Nanda 2023): exact where the score
# is linear in the activation or the difference is small, and blind to saturation elsewhere, which
# is why `patching` checks it. Gradients are those of `engine.slopes`. TransformerLens's
# `attribution_patch` scores heads and MLP outputs of pairs of equal length, one pair at a time, and
# agrees with this there.


def attributed(
    model: TransformerBridge, patching: Patching, scorer: Scorer
) -> Iterator[pd.DataFrame]:
    """The rows of a `PatchPlan`, a frame a task, as the gradient has them: with direction
    `attribution`, and without controls. The scorer reads each prompt by itself."""
    for rows in progress(batches(len(patching.pairs), patching.budget.batch_size), "gradients"):
        frames = [_attribution_one_way(model, patching, rows, scorer, way) for way in patching.ways]
        yield with_token_labels(
            pd.concat(frames, ignore_index=True), patching.pairs, model.tokenizer
        )


def _attribution_one_way(
    model: TransformerBridge, patching: Patching, rows: range, scorer: Scorer, way: str
) -> pd.DataFrame:
    (run, source), places = WAY_RUNS[way], patching.places
    batch, budget = patching.pairs.chosen(rows), patching.budget
    score = partial(score_grid, model, engine=budget.engine, memory_gb=budget.memory_gb)
    roles = list(dict.fromkeys(role for place in places for role in place.roles))
    here, there = PairRun.of(batch, roles, run), PairRun.of(batch, roles, source)
    own, slope = here.read(model, places), role_gradients(model, here, places, scorer)
    value_at = from_run(model, places, here, there)
    base, other = (score(side.tokens, [()], scorer)[0] for side in (here, there))
    names, estimates = [], []
    for place in places:
        before = own.of(place)
        value, present = value_at(place, before)
        step = (value.double() - before.double()) * slope.of(place).double()
        estimates.append(base + step.sum((1, 2)).cpu())
        names.append((place, "attribution", present.numpy()))
    ends = (other, base) if way == "denoise" else (base, other)
    clean, corrupted = (end.numpy() for end in ends)
    table = torch.stack(estimates).numpy()
    return tidy(batch, roles, here.where, way, names, table, clean, corrupted, patching.seed)


def role_gradients(
    model: TransformerBridge, side: PairRun, places: Sequence[Place], scorer: Scorer
) -> RunActivations:
    """d score / d activation at every place, prompt by prompt.

    The stream between attention and MLP has the gradient of what attention adds to it (see
    `patching` on hook_resid_mid).
    """
    keys = list(dict.fromkeys((place.site, place.layer) for place in places))
    names = {key: ("attn_out" if key[0] == "resid_mid" else key[0], key[1]) for key in keys}
    where = torch.where(side.where < 0, side.where, -1)
    asked = list(dict.fromkeys(names.values()))
    found = slopes.gradients(model, side.tokens, scorer, asked, where)
    device = side.tokens.ids.device
    return RunActivations(side, {key: found[names[key]].to(device) for key in keys})


def strongest(guesses: pd.DataFrame, places: Sequence[Place], n: int) -> list[Place]:
    """The n places whose patches are estimated to move most of the gap, on average over pairs and
    ways, in either direction; in the order of `places`."""
    denoise = guesses["way"] == "denoise"
    share = guesses["effect"].where(denoise, 1 - guesses["effect"])
    keys = [guesses[name].fillna(-1) for name in ("layer", "site", "role", "head", "neuron")]
    sizes = share.groupby(keys).mean().abs().to_dict()
    strength = [sizes.get(_key(place), 0.0) for place in places]
    chosen = np.argsort(strength, kind="stable")[::-1][:n]
    return [places[i] for i in sorted(chosen)]


def _key(place: Place) -> tuple[int, str, str, int, int]:
    head, neuron = (-1 if i is None else i for i in (place.head, place.neuron))
    return place.layer, place.site, place.role, head, neuron


# --------------------------------------------------------------------------------------------------
# A patching job: the study's matched pairs, patched at the places asked for, into a run.


Layout = Callable[[TransformerBridge, Pairs], Sequence[Place]]


@dataclass(frozen=True, eq=False)
class Chosen:
    """The pairs to patch, and what became of the others."""

    pairs: Pairs
    counts: Mapping[str, int]


@runtime_checkable
class PairFlags(Protocol):
    """Flags that say how prompts are read, and which of their matched pairs are used."""

    @property
    def system(self) -> str | None: ...
    @property
    def plain(self) -> bool: ...
    @property
    def thought(self) -> int: ...
    @property
    def gap(self) -> float: ...
    @property
    def n_pairs(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


def choose_pairs(study: Study, flags: PairFlags, seen: AbstractSet[str] = frozenset()) -> Chosen:
    """The study's matched pairs whose scores differ by `--gap` or more, `--n-pairs` of them, and
    none of whose prompts is in `seen`.

    `counts` says how many were left out, and in how many of those used the corrupted prompt scores
    higher than the clean one (`inverted`). Raises `DialError` where `seen` leaves fewer than two.
    """
    pairs = match(
        study.model,
        study.prompts,
        study.tokens,
        system=flags.system,
        chat=not flags.plain,
        thought=flags.thought,
    )
    place = {prompt.id: i for i, prompt in enumerate(study.prompts)}
    members = [[prompt.id for prompt in two] for two in by_pair(study.prompts).values()]
    new = [i for i, two in enumerate(members) if seen.isdisjoint(two)]
    if seen and len(new) < 2:
        raise DialError(
            f"{len(new)} of {len(members)} matched pairs have no prompt that the direction was "
            "learned from: expected 2 or more; lower or raise --holdout, or give more pairs"
        )
    clean, corrupted = study.scores[np.array([[place[one] for one in members[i]] for i in new])].T
    used = far_apart(clean, corrupted, flags.gap, flags.n_pairs, flags.seed)
    counts = {
        "matched": len(new),
        "excluded": len(new) - len(far_apart(clean, corrupted, flags.gap)),
        "used": len(used),
        "inverted": int((clean[used] < corrupted[used]).sum()),
    }
    return Chosen(pairs.chosen([new[i] for i in used]), counts)


def conduct_patching(
    experiment: str, study: Study, flags: PatchingFlags, layout: Layout
) -> tuple[Run, pd.DataFrame]:
    """Patch the places of `layout` in the study's pairs into a run; the run and its summary.

    A finished run named by `--out` is read, not computed again.
    """
    chosen = choose_pairs(study, flags)
    run, patching = _open(experiment, study, flags, chosen, layout)
    plan = PatchPlan(patching, study.scorer)
    close = partial(_close, study.threshold, flags.seed, chosen)
    return carry_out(run, study, plan, close, flags)


def conduct_attribution(
    experiment: str, study: Study, flags: PatchingFlags, layout: Layout, refine: int | None = None
) -> tuple[Run, pd.DataFrame]:
    """The same from one gradient for all places, and by exact patches beside it: of all places, or
    of the `refine` that the gradient finds strongest.

    The gradient is cheap and decides what is patched, so a resumed run computes it again.
    """
    chosen = choose_pairs(study, flags)
    run, patching = _open(experiment, study, flags, chosen, layout)
    guesses, exact = [], patching
    if not run.finished:
        guesses = list(attributed(study.model, patching, study.scorer))
    if guesses and refine is not None:
        exact = replace(patching, places=strongest(pd.concat(guesses), patching.places, refine))
    patches = PatchPlan(exact, study.scorer)
    plan = Parts((Known(guesses), patches), patches.grid)
    close = partial(_close, study.threshold, flags.seed, chosen)
    return carry_out(run, study, plan, close, flags)


def _open(
    experiment: str, study: Study, flags: PatchingFlags, chosen: Chosen, layout: Layout
) -> tuple[Run, Patching]:
    places = layout(study.model, chosen.pairs)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    counts = dict(chosen.counts)
    settings = study_settings(study, flags) | {"pairs": counts}
    run = begin(experiment, settings, flags)
    log.info(
        "%d of %d matched pairs: %d differ in score by less than %g and are left out; "
        "%d of those used score higher corrupted than clean",
        *(counts["used"], counts["matched"], counts["excluded"], flags.gap, counts["inverted"]),
    )
    log.info("%s", describe(study.model, places))
    return run, Patching(chosen.pairs, places, flags.ways, flags.seed, budget)


def _close(
    threshold: float, seed: int, chosen: Chosen, scores: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The summary of all rows, and the verdict with the count of pairs."""
    summary = summarise_patching(scores, threshold, seed)
    verdict = {"threshold": threshold, "pairs": dict(chosen.counts)}
    verdict["verdict"] = patching_verdict(summary)
    if (summary["direction"] == "attribution").any():
        verdict["agreement"] = attribution_agreement(summary)
    return summary, verdict
