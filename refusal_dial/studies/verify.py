"""A verification, loaded and measured: the direction, prompts it never saw, and its controls.

    score  the scorer's, at the last prompt token
    kl     mean over a completion's tokens of KL(p_unsteered || p_steered)
    cost   -mean log p a token, under the unsteered model, of the completion

A direction that records its prompts is tested on others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import stats
from refusal_dial.cells import (
    BASELINE,
    Alpha,
    Cell,
    Named,
    SteeringPlace,
    alphas_in,
    cells_at,
    labelled,
    steer_at,
)
from refusal_dial.cli.flags import LEAST_TESTED, VerifyFlags
from refusal_dial.common import DialError, Hook
from refusal_dial.data.prompts import (
    SUBSETS,
    Prompt,
    data_hash,
    extremes,
    holdout_split,
    load_prompts,
    some_of_each,
)
from refusal_dial.directions.files import check_fits, direction_at, direction_file
from refusal_dial.directions.learning import (
    Direction,
    covariance_directions,
    mean_diff,
    norm_matched,
    random_directions,
    shuffled_directions,
    top_bottom,
    unrelated_direction,
)
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.likelihood import kl_per_token, nll
from refusal_dial.model.tokens import Tokens
from refusal_dial.run.plan import (
    Budget,
    CellPlan,
    Parts,
    Plan,
    SweepPlan,
    Task,
    generation_memory,
    grid_of,
    tasks_over,
)
from refusal_dial.stats.intervals import Floats
from refusal_dial.stats.p_values import contrast_weights
from refusal_dial.stats.summary import ROW_KEYS
from refusal_dial.studies.base import Study, load_study, measured_on

# --------------------------------------------------------------------------------------------------
# A verification, opened: the direction, prompts that it never saw, and what it stands beside.
#
# Prompts are in two parts. `learn` is what controls are learned from, `test` what everything is
# measured on. A direction that records its prompts is tested on others; of one that does not,
# nobody can tell, and half of each subset is held out from its controls alone. The reference is how
# the direction is learned again: from the scores of EDGE prompts, top against bottom, or from
# HARMFUL against BENIGN.


SAME_COSINE = 1 - 1e-3
"""A direction with a cosine from here up to what its labels teach is that one."""

LEAST_LEFT = 1e-4
"""A direction of which less than this is left beside another one is that other one."""


@dataclass(frozen=True, eq=False)
class Reference:
    """How a direction is learned again: activations, a value a prompt, and the way. `scores` takes
    the top against the bottom third, `contrast` positive values against negative ones."""

    name: str
    activations: Float[Tensor, "prompt d_model"]
    values: tuple[float, ...]
    like: Direction

    @property
    def subsets(self) -> tuple[str, ...]:
        return ("EDGE",) if self.name == "scores" else ("HARMFUL", "BENIGN")

    def learn(self, values: Sequence[float]) -> Direction:
        """The direction that these values would teach."""
        return self.of(range(len(self.values)), values)

    def of(self, rows: Sequence[int], values: Sequence[float]) -> Direction:
        """The same from some of the prompts, `values[i]` being that of prompt `rows[i]`."""
        some, about = self.activations[list(rows)], self.like.provenance
        if self.name == "scores":
            return top_bottom(some, values, about)
        positive = torch.tensor([value > 0 for value in values])
        return mean_diff(some[positive], some[~positive], about)


@dataclass(frozen=True, eq=False)
class Control:
    """One draw of a kind of control, and the given direction's cosine to it as it was drawn."""

    kind: str
    number: int
    direction: Direction
    cosine: float


@dataclass(frozen=True, eq=False)
class VerificationStudy:
    """Everything the verdict starts from. `length` is the direction of prompt length, `left` what
    is left of the given one beside it (None for nothing) and `left_size` how much that is."""

    study: Study
    given: Direction
    sha256: str
    place: SteeringPlace
    alphas: tuple[Alpha, ...]
    learn: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    exploratory: bool
    known: bool
    learned_from: Reference
    tested_on: Reference
    controls: tuple[Control, ...]
    length: Direction
    left: Direction | None
    left_size: float

    @property
    def labels(self) -> Floats | None:
        """The weights of the labels that the direction was learned from (see `stats.p_values`);
        None where it does not say, or is not what they teach."""
        one, given = self.learned_from, self.given
        ids = {prompt.id for prompt in self.learn if prompt.subset in one.subsets}
        if not self.known or ids != set(given.provenance.prompt_ids):
            return None
        if float(one.learn(one.values).unit @ given.unit) < SAME_COSINE:
            return None
        values = np.array(one.values)
        if one.name == "scores":
            k = max(1, len(values) // 3)
            return contrast_weights(len(values), *extremes(one.values, k))
        return contrast_weights(
            len(values), *(np.flatnonzero(s * values > 0).tolist() for s in (1, -1))
        )

    @property
    def alpha(self) -> float:
        """How far the direction is turned, up and down, in residual-stream units."""
        return self.alphas[0].absolute

    def tested(self, subset: str) -> list[Prompt]:
        """The test prompts of one subset."""
        return [prompt for prompt in self.test if prompt.subset == subset]


def load_verification(flags: VerifyFlags) -> VerificationStudy:
    """Read the direction, load what the flags name, and draw the controls.

    Raises `DialError` for whatever of it cannot be used, a direction of another width included.
    """
    load_prompts(flags.prompts)  # a mistake in them is found before the model loads
    given = direction_at(flags.direction, flags.layer, flags.site, flags.pos)
    at = given.provenance
    study = load_study(flags, (at.layer,), at.site, at.pos)
    return verification_of(study, given, flags)


def verification_of(study: Study, given: Direction, flags: VerifyFlags) -> VerificationStudy:
    """The verification of this direction on a study that is open at its place."""
    file = direction_file(flags.direction, flags.layer)
    check_fits(given, study.model, flags.any_model)
    missing = [s for s in SUBSETS if not any(p.subset == s for p in study.prompts)]
    if missing:
        raise DialError(f"a verdict takes {', '.join(SUBSETS)} prompts: no {' and '.join(missing)}")
    name = _reference_name(study, given, flags)
    learn, test, exploratory, known = _parts(study, given, flags, name)
    learned_from, tested_on = (_reference(study, given, name, part) for part in (learn, test))
    fewest = min(len(tested_on.values), sum(p.subset == "EDGE" for p in test))
    if fewest < LEAST_TESTED:
        raise DialError(
            f"a verdict takes at least {LEAST_TESTED} prompts to test on, not {fewest}: "
            "more prompts, or a larger --n-test"
        )
    norm = study.residual_norm(given.provenance.layer)
    at = given.provenance
    place = SteeringPlace(at.layer, at.site, at.pos, norm)
    alphas = alphas_in((flags.alpha, -flags.alpha), flags.unit, norm, given)
    edge = _reference(study, given, "scores", learn)
    of = study.rows([p for p in learn if p.subset == "EDGE"])
    lengths = [float(n) for n in study.tokens.mask.sum(1)[of]]
    length = unrelated_direction(given, edge.learn, lengths, "length")
    left, size = orthogonal_part(given, length)
    return VerificationStudy(
        study,
        given,
        hashlib.sha256(file.read_bytes()).hexdigest(),
        place,
        alphas,
        tuple(learn),
        tuple(test),
        exploratory,
        known,
        learned_from,
        tested_on,
        tuple(_controls(given, edge, flags)),
        length,
        left,
        size,
    )


def orthogonal_part(one: Direction, other: Direction) -> tuple[Direction | None, float]:
    """`(u - (u·l) l) / |u - (u·l) l|` and its length before it was divided: what is left of a
    direction beside another. None where nothing is."""
    u, v = one.unit.double(), other.unit.double()
    rest = u - (u @ v) * v
    size = float(rest.norm())
    if size < LEAST_LEFT:
        return None, 0.0
    unit = replace(one, unit=(rest / size).float())
    about = one.provenance
    return norm_matched(unit, one, f"{about.method} beside", about.seed), size


def _parts(
    study: Study, given: Direction, flags: VerifyFlags, reference: str
) -> tuple[list[Prompt], list[Prompt], bool, bool]:
    """(learn, test, whether the direction saw the test prompts, whether that is known). Subsets
    that nothing is learned from are all to test on."""
    place = {prompt.id: prompt for prompt in study.prompts}
    ids = given.provenance.prompt_ids
    from_here = [place[i] for i in ids if i in place]
    known = bool(ids) and len(from_here) == len(ids)
    known = known and data_hash(from_here) == given.provenance.data_hash
    seen = set(ids) if known else set()
    learn, test, exploratory = [], [], False
    for subset in SUBSETS:
        mine = [prompt for prompt in study.prompts if prompt.subset == subset]
        old, new = [p for p in mine if p.id in seen], [p for p in mine if p.id not in seen]
        if len(new) < 4:
            exploratory, new = True, mine
        needed = subset == "EDGE" or reference == "contrast"
        if needed and (len(old) < 4 or new is mine):
            old, new = holdout_split(new, flags.seed)
        if len(new) > flags.n_test:
            new = holdout_split(new, flags.seed, flags.n_test / len(new))[1]
        learn += old
        test += new
    return learn, test, exploratory, known


def _reference(study: Study, given: Direction, name: str, prompts: Sequence[Prompt]) -> Reference:
    subsets = ("EDGE",) if name == "scores" else ("HARMFUL", "BENIGN")
    mine = [prompt for prompt in prompts if prompt.subset in subsets]
    rows = study.rows(mine)
    values = [float(study.scores[row]) for row in rows]
    if name == "contrast":
        values = [1.0 if prompt.subset == "HARMFUL" else -1.0 for prompt in mine]
    return Reference(name, study.activations[0][rows], tuple(values), given)


def _reference_name(study: Study, given: Direction, flags: VerifyFlags) -> str:
    """As asked; else as the direction was learned where it says so; else that of the two which, on
    the prompts to learn from, comes closer to it."""
    if flags.reference != "auto":
        return flags.reference
    method = given.provenance.method
    if method.startswith("top_bottom"):
        return "scores"
    if method in ("mean_diff", "probe"):
        return "contrast"
    learn, cosines = _parts(study, given, flags, "contrast")[0], {}
    for name in ("scores", "contrast"):
        one = _reference(study, given, name, learn)
        cosines[name] = abs(float(one.learn(one.values).unit @ given.unit))
    return max(cosines, key=lambda name: cosines[name])


def _controls(given: Direction, edge: Reference, flags: VerifyFlags) -> list[Control]:
    """Every null that is asked for, all of the given one's length.

    Covariance and shuffled labels are taken beside the given direction: where prompts differ mostly
    along it, as EDGE prompts do along refusal, such draws are nearly the direction itself, and
    nothing could be more than they are. What is left of them is every other way to differ.
    """
    n, seed = flags.n_random, flags.seed
    draws: dict[str, list[Direction]] = {}
    if "random" in flags.controls:
        draws["random"] = random_directions(given, n, seed)
    if "covariance" in flags.controls:
        draws["covariance"] = covariance_directions(given, edge.activations, n, seed)
    if "shuffled" in flags.controls:
        draws["shuffled"] = shuffled_directions(given, edge.learn, edge.values, n, seed)
    found = []
    for kind, drawn in draws.items():
        for i, one in enumerate(drawn):
            left = one if kind == "random" else orthogonal_part(one, given)[0]
            if left is not None:
                cosine = float(one.unit.double() @ given.unit.double())
                found.append(Control(kind, i, left, cosine))
    return found


# --------------------------------------------------------------------------------------------------
# What is measured: scores of test prompts under the direction and its controls, and replies.
#
#     score  the scorer's, at the last prompt token
#     kl     mean over a reply's tokens of KL(p_unsteered || p_steered), along the unsteered reply
#     cost   -mean log p a token, under the unsteered model, of the completion under the cell
#
# `score` is measured on EDGE for every direction and on HARMFUL and BENIGN for the given one; `kl`
# and `cost` on BENIGN, for the given one and a few random ones. A row per measure, cell and prompt;
# alphas are of both signs.


VERIFY_ORDER = [*ROW_KEYS, "score", "measure"]

N_BESIDE = 2  # random directions whose damage stands beside the given one's


@dataclass(frozen=True, eq=False)
class DamagePlan(CellPlan):
    """What the cells do to harmless completions: `kl` along the unsteered ones, and the `cost` of
    those under each cell. The first cell is the unsteered model."""

    decoding: Decoding
    budget: Budget

    @property
    def tasks(self) -> list[Task]:
        return tasks_over(len(self.rows), len(self.cells), self.budget.batch_size, each=2)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        tokens, rows = self.part(model, task)
        # 1. A completion of every prompt under every cell.
        grid, keys = [cell.hooks for cell in self.cells], list(rows["prompt_id"])
        completions = generate(model, tokens, grid, self.decoding, keys=keys)
        # 2. How far each cell moves the next token along the unsteered completions.
        unsteered = [one.ids for one in completions if one.cell == 0]
        kl = kl_per_token(model, tokens, grid, unsteered)
        # 3. How unlikely its own completions are without it.
        frames = []
        for i, cell in enumerate(self.cells):
            mine = [one for one in completions if one.cell == i]
            cost = nll(model, tokens, [one.ids for one in mine], [one.stop for one in mine])
            for measure, values in (("kl", kl[i]), ("cost", cost)):
                frame = rows.reset_index(drop=True).assign(**cell.labels)
                frame["seed"] = pd.Series([cell.labels["seed"]] * len(rows), dtype="Int64")
                frames.append(frame.assign(score=values.cpu().numpy(), measure=measure))
        return pd.concat(frames, ignore_index=True)[VERIFY_ORDER]

    def memory(self, model: TransformerBridge) -> float:
        most, length = max(task.rows for task in self.tasks), self.tokens.ids.shape[1]
        generation = generation_memory(model, self.decoding, length, most)
        return max(self.budget.memory(model), generation)


def plan_of(verification: VerificationStudy, flags: VerifyFlags) -> Parts:
    """What is measured, in order: scores of EDGE, of the other subsets, harmless completions."""
    # 1. The given direction on every subset; its controls on EDGE.
    given: list[Named] = [("learned", None, verification.given)]
    controls: list[Named] = [(one.kind, one.number, one.direction) for one in verification.controls]
    length: list[Named] = [("length", None, verification.length)]
    edge = verification_cells(verification, [*given, *length, *controls]) + _left(verification)
    cells = {"EDGE": edge, "HARMFUL": verification_cells(verification, given)}
    cells["BENIGN"] = cells["HARMFUL"]
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    parts: list[Plan] = []
    for subset, some in cells.items():
        tokens, rows = _prompts(verification, verification.tested(subset))
        rows = rows.assign(measure="score")
        parts.append(SweepPlan(tokens, rows, some, verification.study.scorer, budget, VERIFY_ORDER))
    # 2. The given direction and a few random ones on completions of BENIGN prompts.
    few = [one for one in controls if one[0] == "random"][:N_BESIDE]
    replied = some_of_each(verification.tested("BENIGN"), flags.n_replies, flags.seed)
    tokens, rows = _prompts(verification, replied)
    small = Budget(min(16, flags.batch_size), flags.engine, flags.memory_gb)
    damaged = tuple(verification_cells(verification, [*given, *few]))
    decoding = Decoding(max_new_tokens=flags.max_new_tokens)
    parts.append(DamagePlan(tokens, rows, damaged, decoding, small))
    prompts = {f"{subset} score": len(verification.tested(subset)) for subset in cells}
    prompts["BENIGN reply"] = len(replied)
    return Parts(parts, grid_of(prompts, [cell.labels for cell in edge]))


def _prompts(
    verification: VerificationStudy, prompts: Sequence[Prompt]
) -> tuple[Tokens, pd.DataFrame]:
    """Their tokens, and their columns."""
    split = "seen" if verification.exploratory else "holdout"
    return measured_on(verification.study, prompts, split)


def verification_cells(verification: VerificationStudy, named: Sequence[Named]) -> list[Cell]:
    """The unsteered model, then each direction at alpha and at -alpha."""
    at = verification.place
    baseline = labelled(BASELINE, layer=at.layer, site=at.site, pos=at.pos)
    return [baseline, *cells_at(named, verification.alphas, at)]


def _left(verification: VerificationStudy) -> list[Cell]:
    """The given direction without its component along prompt length, no longer than that leaves
    it."""
    if verification.left is None:  # nothing is left of it
        given = cells_at(
            [("left", None, verification.given)], verification.alphas, verification.place
        )
        return [replace(cell, hooks=()) for cell in given]

    def shorter(direction: Direction, alpha: float, place: SteeringPlace) -> Hook:
        return steer_at(direction, alpha * verification.left_size, place)

    return cells_at(
        [("left", None, verification.left)], verification.alphas, verification.place, shorter
    )


# --------------------------------------------------------------------------------------------------
# The rows of a verification as tables, and what reads them: scores, swings, the gap.
#
#     swing[b] = score of prompt b at alpha - score at -alpha


Key = tuple[str, str, str, float]

AS_FAR_AS_ANY = float(np.finfo(float).max)


@dataclass(frozen=True, eq=False)
class Measurements:
    """The rows of a verification (see `as_tables`), and what reads them. `cosines` are those of
    each kind of control, and of prompt length, with the given direction."""

    table: Mapping[Key, Floats]
    alpha: float
    threshold: float
    level: float
    seed: int
    exploratory: bool
    kinds: tuple[str, ...]
    cosines: Mapping[str, Floats]

    def values(self, direction: str, sign: int, subset: str, measure: str = "score") -> Floats:
        """A value a prompt, in the order of the prompts; of a control a row a draw."""
        found = self.table[direction, measure, subset, sign * self.alpha]
        return found if direction in self.kinds else found[0]

    def base(self, subset: str) -> Floats:
        """Unsteered scores of a subset."""
        return self.values("baseline", 0, subset)

    def swing(self, direction: str) -> Floats:
        """Of EDGE, a value a prompt; of a control a row a draw."""
        return self.values(direction, 1, "EDGE") - self.values(direction, -1, "EDGE")

    @property
    def gap(self) -> float:
        """Mean unsteered score of HARMFUL minus that of BENIGN."""
        return float(np.nanmean(self.base("HARMFUL")) - np.nanmean(self.base("BENIGN")))

    @property
    def unable(self) -> str:
        """Why nothing about an effect can be shown."""
        return (
            "exploratory: the direction was learned from these prompts" if self.exploratory else ""
        )

    def too_few(self, draws: int, chance: float) -> str:
        """Why so many draws can show no effect, where the smallest p that they reach, `chance`, is
        over the level; or empty."""
        if chance <= self.level:
            return ""
        return f"{draws} draws are too few for any effect: raise --n-random"

    @property
    def no_effect(self) -> str:
        """Why there is no effect that a claim could be about, or empty: the swing is the wrong way,
        or not distinguishable from that of random directions."""
        swing = float(self.swing("learned").mean())
        if swing <= 0:
            return "there is no effect upwards from -alpha to +alpha"
        if "random" not in self.kinds:
            return ""
        null = self.swing("random").mean(1)
        if one_sided(swing, null) <= self.level:
            return ""
        few = self.too_few(len(null), 1 / (2 * len(null) + 2))
        return few or "its effect is not distinguishable from that of random directions"


def as_tables(rows: pd.DataFrame) -> dict[Key, Floats]:
    """(direction, measure, subset, alpha) -> scores, `draw prompt`, prompts in their order."""
    found: dict[Key, Floats] = {}
    keys = ["direction", "measure", "subset", "alpha"]
    for named, part in rows.groupby(keys, sort=False):
        direction, measure, subset, alpha = cast(Key, named)
        prompts = list(dict.fromkeys(part["prompt_id"]))
        table = part.assign(seed=part["seed"].fillna(-1)).pivot(
            index="seed", columns="prompt_id", values="score"
        )
        found[direction, measure, subset, alpha] = table[prompts].to_numpy(dtype=float)
    return found


def one_sided(effect: float, null: Floats) -> float:
    """`k / (2 n + 2)`, k the place of the effect among itself, n draws and all their opposites,
    counted from the largest: for a null that is as likely to be x as -x. `rank_p / 2` for an effect
    over 0. A draw that is missing counts as at least as far."""
    if not len(null) or not np.isfinite(effect):
        return float("nan")
    p = stats.rank_p(effect, np.where(np.isfinite(null), null, AS_FAR_AS_ANY))
    return p / 2 if effect > 0 else 1 - p / 2 + 1 / (2 * len(null) + 2)
