"""Two studies on one model, opened: openings with a toxicity direction, prompts with refusal's.

The refusal direction is learned on half of EDGE, and measured on the other half and on HARMFUL. It
does not steer, and it does not write.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.continuation.opened import Opened, continuation_settings, open_continuations
from refusal_dial.directions import Direction
from refusal_dial.flags import SteeringFlags
from refusal_dial.objectives.flags import ObjectiveFlags
from refusal_dial.prompts import (
    Prompt,
    data_hash,
    holdout_split,
    load_prompts,
    of_subset,
    some_of_each,
)
from refusal_dial.steering import learn
from refusal_dial.study import Study, study_of
from refusal_dial.subspaces import overlap
from refusal_dial.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Both:
    """What the two objectives are measured on, and the two directions."""

    openings: Opened
    study: Study
    prompts: tuple[Prompt, ...]
    tokens: Tokens
    refusal: Direction

    @property
    def model(self) -> TransformerBridge:
        return self.openings.model

    @property
    def toxicity(self) -> Direction:
        return self.openings.learned[0]

    @property
    def overlap(self) -> float:
        """How much the two directions share: the squared cosine (see `subspaces`)."""
        return overlap(self.toxicity.unit[None], self.refusal.unit[None])

    @property
    def about(self) -> tuple[str, ...]:
        return (*self.openings.about, *self.study.about, f"overlap {self.overlap:.4f}")


def open_both(flags: ObjectiveFlags) -> Both:
    """Load the model once and learn both directions. Raises `DialError` for what cannot be used."""
    load_prompts(flags.prompts)  # a mistake in them is found before the model loads
    openings = open_continuations(flags)
    steering = SteeringFlags(
        model=flags.model,
        prompts=flags.prompts,
        refusal_tokens=flags.refusal_tokens,
        threshold=flags.threshold,
        seed=flags.seed,
        site=flags.site,
        pos=flags.pos,
    )
    study = study_of(openings.model, steering, (flags.refusal_layer,), flags.site, flags.pos)
    train, held_out = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed)
    (refusal,) = learn(study, steering, train)
    wanted = [*of_subset(study.prompts, "HARMFUL"), *held_out]
    prompts = some_of_each(wanted, flags.n_prompts, flags.seed)
    rows = study.rows(prompts)
    tokens = Tokens(study.tokens.ids[rows], study.tokens.mask[rows])
    return Both(openings, study, tuple(prompts), tokens, refusal)


def objective_settings(both: Both, flags: ObjectiveFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = continuation_settings(both.openings, flags)
    settings["prompts"] = {"source": flags.prompts, "hash": data_hash(both.prompts)}
    settings["refusal_tokens"] = asdict(both.study.refusal)
    return settings
