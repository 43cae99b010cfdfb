"""A verification, opened: the direction, prompts that it never saw, and what it stands beside.

Prompts are in two parts. `learn` is what controls are learned from, `test` what everything is
measured on. A direction that records its prompts is tested on others; of one that does not, nobody
can tell, and half of each subset is held out from its controls alone. The reference is how the
direction is learned again: from the scores of EDGE prompts, top against bottom, or from HARMFUL
against BENIGN. Nothing is steered or written here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.controls import (
    covariance_directions,
    norm_matched,
    random_directions,
    shuffled_directions,
    unrelated_direction,
)
from refusal_dial.direction_files import read_direction
from refusal_dial.directions import Direction, mean_diff, top_bottom
from refusal_dial.files import located
from refusal_dial.prompts import SUBSETS, Prompt, data_hash, holdout_split, load_prompts
from refusal_dial.steering import check_fits
from refusal_dial.study import Study, open_study
from refusal_dial.types import DialError
from refusal_dial.verify.flags import LEAST_TESTED, VerifyFlags

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
class Opened:
    """Everything the verdict starts from. `length` is the direction of prompt length, `left` what
    is left of the given one beside it (None for nothing) and `left_size` how much that is."""

    study: Study
    given: Direction
    sha256: str
    alpha: float
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

    def tested(self, subset: str) -> list[Prompt]:
        """The test prompts of one subset."""
        return [prompt for prompt in self.test if prompt.subset == subset]


def open_verification(flags: VerifyFlags) -> Opened:
    """Read the direction, load what the flags name, and draw the controls.

    Raises `DialError` for whatever of it cannot be used, a direction of another width included.
    """
    load_prompts(flags.prompts)  # a mistake in them is found before the model loads
    given = read_direction(flags.direction, flags.layer, flags.site, flags.pos)
    at = given.provenance
    study = open_study(flags, (at.layer,), at.site, at.pos)
    return opened_on(study, given, flags)


def opened_on(study: Study, given: Direction, flags: VerifyFlags) -> Opened:
    """The verification of this direction on a study that is open at its place."""
    file = located(flags.direction)
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
    alpha = flags.alpha * norm if flags.alpha_unit == "residual" else flags.alpha
    edge = _reference(study, given, "scores", learn)
    of = study.rows([p for p in learn if p.subset == "EDGE"])
    lengths = [float(n) for n in study.tokens.mask.sum(1)[of]]
    length = unrelated_direction(given, edge.learn, lengths, "length")
    left, size = beside(given, length)
    return Opened(
        study,
        given,
        hashlib.sha256(file.read_bytes()).hexdigest(),
        float(f"{alpha:.4g}"),
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


def beside(one: Direction, other: Direction) -> tuple[Direction | None, float]:
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
            left = one if kind == "random" else beside(one, given)[0]
            if left is not None:
                cosine = float(one.unit.double() @ given.unit.double())
                found.append(Control(kind, i, left, cosine))
    return found
