"""Steering: learn a direction per layer, and lay out the cells that turn it up and down.

The cells are the baseline, the learned direction at every alpha, and its controls at the same
layer, site, position and alphas. This module builds them. It does not run them and does not know
which of them works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.controls import (
    covariance_directions,
    flipped_direction,
    fold_directions,
    fold_numbers,
    random_directions,
    shuffled_directions,
    unrelated_direction,
)
from refusal_dial.directions import Direction, Provenance, top_bottom
from refusal_dial.flags import RELATIVE_ALPHAS, SteeringFlags
from refusal_dial.hooks import steer
from refusal_dial.model import identity
from refusal_dial.prompts import Prompt, data_hash, holdout_split, of_subset
from refusal_dial.study import Study
from refusal_dial.sweep import Cell
from refusal_dial.types import DialError

LABELS = ("direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative")
LEARNED_AGAIN = ("shuffled", "length", "folds")  # takes the prompts that were learned from
N_FOLDS = 5
BASELINE = Cell(dict(zip(LABELS, ("baseline", None, None, "", None, 0.0, 0.0), strict=True)))


def learn(
    study: Study, flags: SteeringFlags, prompts: Sequence[Prompt], balanced: bool = False
) -> list[Direction]:
    """For each layer, the top-scored of `prompts` minus the bottom-scored (see `top_bottom`).

    `balanced` takes equally many of each category into top and bottom.
    """
    who = identity(study.model)
    about = Provenance(
        layer=-1,
        site=flags.site,
        pos=flags.pos,
        model=who.name,
        revision=who.revision,
        seed=flags.seed,
        prompt_ids=tuple(prompt.id for prompt in prompts),
        data_hash=data_hash(prompts),
    )
    scores = [float(score) for score in study.scores[study.rows(prompts)]]
    places = [replace(about, layer=layer) for layer in study.layers]
    return [learn_at(study, one, flags.k, prompts, balanced, scores) for one in places]


def learn_at(
    study: Study,
    about: Provenance,
    k: int | None,
    prompts: Sequence[Prompt],
    balanced: bool,
    scores: Sequence[float],
) -> Direction:
    """The direction of one layer, learned from these prompts as if they had these scores."""
    return top_bottom(
        study.activations[study.layers.index(about.layer)][study.rows(prompts)],
        scores,
        about,
        k=k,
        categories=[prompt.category for prompt in prompts] if balanced else None,
    )


def training(study: Study, flags: SteeringFlags, share: float = 0.5) -> list[Prompt]:
    """The EDGE prompts to learn from: with `holdout` among the controls all but this share of every
    category, else all of them."""
    edge = of_subset(study.prompts, "EDGE")
    return holdout_split(edge, flags.seed, share)[0] if "holdout" in flags.controls else edge


def control_directions(
    study: Study,
    flags: SteeringFlags,
    learned: Direction,
    prompts: Sequence[Prompt],
    balanced: bool = False,
) -> list[tuple[str, int | None, Direction]]:
    """(kind, seed, direction) of every control that `--controls` names, at the learned one's layer.

    `prompts` are those it was learned from; without them, as for a direction from a file, there is
    nothing to learn another from, and the covariance is that of all prompts.
    """
    layer = learned.provenance.layer
    of = study.rows(prompts or study.prompts)
    scores = [float(score) for score in study.scores[of]]
    again = partial(learn_at, study, learned.provenance, flags.k, prompts, balanced)
    kinds = [kind for kind in flags.controls if prompts or kind not in LEARNED_AGAIN]
    found: list[tuple[str, int | None, Direction]] = []
    if "random" in kinds:
        found += _numbered("random", random_directions(learned, flags.n_random, flags.seed))
    if "covariance" in kinds:
        rows = study.activations[study.layers.index(layer)][of]
        drawn = covariance_directions(learned, rows, flags.n_random, flags.seed)
        found += _numbered("covariance", drawn)
    if "shuffled" in kinds:
        within = [prompt.category for prompt in prompts] if balanced else None
        drawn = shuffled_directions(learned, again, scores, flags.n_random, flags.seed, within)
        found += _numbered("shuffled", drawn)
    if "flipped" in kinds:
        found.append(("flipped", None, flipped_direction(learned)))
    if "length" in kinds:
        lengths = [float(n) for n in study.tokens.mask.sum(1)[of]]
        found.append(("length", None, unrelated_direction(learned, again, lengths, "length")))
    if "folds" in kinds:
        folds = fold_numbers([prompt.category for prompt in prompts], N_FOLDS, flags.seed)

        def without(rest: Sequence[int]) -> Direction:
            some, told = [prompts[i] for i in rest], [scores[i] for i in rest]
            return learn_at(study, learned.provenance, flags.k, some, balanced, told)

        found += _numbered("fold", fold_directions(learned, without, folds))
    return found


def _numbered(kind: str, drawn: Sequence[Direction]) -> list[tuple[str, int | None, Direction]]:
    return [(kind, seed, one) for seed, one in enumerate(drawn)]


def placed(
    direction: Direction,
    study: Study,
    flags: SteeringFlags,
    layer: int,
    any_model: bool = False,
) -> Direction:
    """A direction from a file, to be used at this layer, site and position of this model, if it is
    one of this model (see `check_fits`)."""
    check_fits(direction, study.model, any_model)
    here = replace(direction.provenance, layer=layer, site=flags.site, pos=flags.pos)
    return replace(direction, provenance=here)


def check_fits(direction: Direction, model: TransformerBridge, any_model: bool = False) -> None:
    """Raises `DialError` if a direction is not as wide as the model's residual stream, or, unless
    `any_model`, if it says that it was learned on other weights. One that does not say is taken."""
    width, about = int(model.cfg.d_model), direction.provenance
    if len(direction.unit) != width:
        raise DialError(
            f"the direction is {len(direction.unit)} wide (learned on "
            f"{about.model or 'an unnamed model'}) and this model's residual "
            f"stream is {width}: use a direction of the same model"
        )
    who = identity(model)
    known = bool(about.revision and who.revision)
    same = about.revision == who.revision if known else about.model in ("", who.name)
    if not same and not any_model:
        raise DialError(
            f"the direction was learned on {about.model} (revision {about.revision or 'unknown'}) "
            f"and this is {who.name} (revision {who.revision or 'unknown'}): use a direction of "
            "this model, or --any-model"
        )


def alphas_at(study: Study, flags: SteeringFlags, layer: int) -> list[tuple[float, float]]:
    """(alpha, alpha / mean residual norm) for each step of the dial at one layer.

    alpha is always what `steer` takes. `--alphas auto` and `--alpha-unit residual` are multiples of
    the layer's mean residual norm, which alpha is rounded to four digits of.
    """
    norm = study.residual_norm(layer)
    if flags.alphas and flags.alpha_unit == "absolute":
        return [(alpha, round(alpha / norm, 6)) for alpha in flags.alphas]
    return [(float(f"{r * norm:.4g}"), r) for r in flags.alphas or RELATIVE_ALPHAS]


def steering_cells(
    study: Study,
    flags: SteeringFlags,
    learned: Sequence[Direction],
    prompts: Sequence[Prompt] = (),
    balanced: bool = False,
) -> list[Cell]:
    """The baseline, then for each learned direction itself and its controls, each at every alpha.
    `prompts` are those that it was learned from."""
    cells = [BASELINE]
    for direction in learned:
        layer = direction.provenance.layer
        named: list[tuple[str, int | None, Direction]] = [("learned", None, direction)]
        named += control_directions(study, flags, direction, prompts, balanced)
        for name, seed, one in named:
            for alpha, relative in alphas_at(study, flags, layer):
                place = (layer, flags.site, flags.pos)
                hook = steer(one, alpha, layer=layer, pos=flags.pos, site=flags.site)
                values = (name, seed, *place, alpha, relative)
                cells.append(Cell(dict(zip(LABELS, values, strict=True)), [hook]))
    return cells
