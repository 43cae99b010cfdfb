"""A study: a model, its prompts and the scorer that reads it, ready for questions.

Opens what the flags name, in the order in which mistakes are cheapest to find. Every prompt is
scored once, unsteered, as it is opened. It does not steer, and it does not write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cli.flags import MACHINES, REPLY_ONLY, OpenFlags, StudyFlags
from refusal_dial.common import UNITS, log
from refusal_dial.data.prompts import Prompt, data_hash, load_prompts
from refusal_dial.directions.learning import Provenance
from refusal_dial.engine.score import Scorer
from refusal_dial.generate.thoughts import read_prompts
from refusal_dial.model.activations import LastLogits, collect
from refusal_dial.model.loading import check_layers, check_site, identity, load_model
from refusal_dial.model.precision import Rounding, rounding_of
from refusal_dial.model.tokens import Tokens, tokens_hash
from refusal_dial.run.folder import TOKENS
from refusal_dial.run.job import check_asked
from refusal_dial.scoring.logits import Logits, RefusalTokens, make_scorer
from refusal_dial.studies.judged_tokens import judged_replies, threshold_of, tokens_for

KEPT_LOGITS = 2**29
"""Bytes of logits that are kept while refusal tokens are found: those of 540 prompts at a
vocabulary of 248,000. Where they are more, some prompts are read twice."""


@runtime_checkable
class Placed(Protocol):
    """Flags that name a site, and a seed."""

    @property
    def site(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Study:
    """Everything a question starts from. `activations` are those of `site` at `pos`; a score over
    `threshold` counts as a refusal."""

    model: TransformerBridge
    prompts: tuple[Prompt, ...]
    tokens: Tokens
    refusal: RefusalTokens
    scorer: Scorer
    scores: NDArray[np.float64]
    layers: tuple[int, ...]
    activations: Float[Tensor, "layer prompt d_model"]
    threshold: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Sent to a worker without the model: a worker has its own."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    @property
    def about(self) -> tuple[str, ...]:
        """What a run's log says of how the model is read."""
        opening = " ".join(map(repr, self.refusal.refusal_texts))
        read = f"refusal tokens ({self.refusal.source}): {opening}"
        return (read,) if self.rounding is None else (read, self.rounding.about)

    @cached_property
    def rounding(self) -> Rounding | None:
        """How far scores in half precision are from float32; None in full precision."""
        return rounding_of(self.model, self.tokens, self.scorer, self.scores)

    def rows(self, chosen: Sequence[Prompt]) -> list[int]:
        """Where the chosen prompts stand in `prompts`."""
        place = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        return [place[prompt.id] for prompt in chosen]

    def residual_norm(self, layer: int) -> float:
        """Mean over prompts of the activation's norm: what an alpha is to be compared with."""
        return float(self.activations[self.layers.index(layer)].norm(dim=-1).mean())


def load_study(
    flags: StudyFlags, layers: Sequence[int] | None = (), site: str = "resid_pre", pos: int = -1
) -> Study:
    """Load, tokenize and score what the flags name; `layers=None` means all of them.

    Raises `DialError` for whatever of it cannot be used; of files and folders before the model
    loads, which may take minutes.
    """
    check_asked(flags)
    load_prompts(flags.prompts)
    model = load_model(flags.model, flags.device, flags.dtype, device_map=flags.device_map)
    return study_of(model, flags, layers, site, pos)


def study_of(
    model: TransformerBridge,
    flags: OpenFlags,
    layers: Sequence[int] | None = (),
    site: str = "resid_pre",
    pos: int = -1,
) -> Study:
    """The study that the flags name on a model that is there already."""
    prompts = load_prompts(flags.prompts)
    wanted = range(int(model.cfg.n_layers)) if layers is None else layers
    chosen = check_layers(model, wanted)
    check_site(model, site)
    tokens = prompt_tokens(model, [p.text for p in prompts], flags, flags.system)
    log.info("reading %d prompts", len(prompts))
    read = partial(collect, model, tokens, chosen, site=site, pos=pos, batch_size=flags.batch_size)
    replies = judged_replies(model, prompts, tokens) if flags.threshold is None else None

    def scoring(logits: Logits) -> tuple[RefusalTokens, Scorer]:
        refusal = tokens_for(flags.refusal_tokens, model, prompts, tokens, logits, replies)
        return refusal, make_scorer(flags.scorer, refusal)

    # Logits of all prompts are there at once only while they are small. Else the prompts that tell
    # refusal tokens are read first, and of every prompt only its score stays.
    if 4 * len(tokens) * int(model.cfg.d_vocab) <= KEPT_LOGITS:
        activations, logits = read()
        refusal, scorer = scoring(logits)
        starts = range(0, len(tokens), flags.batch_size)
        scored = torch.cat([scorer(logits[start : start + flags.batch_size]) for start in starts])
    else:
        refusal, scorer = scoring(LastLogits(model, tokens, flags.batch_size))
        activations, scored = read(read=scorer)
    scores = scored.numpy()
    threshold = flags.threshold if replies is None else threshold_of(replies, scores)
    return Study(
        model,
        tuple(prompts),
        tokens,
        refusal,
        scorer,
        scores,
        chosen,
        activations,
        float(threshold or 0.0),
    )


def prompt_tokens(
    model: TransformerBridge, texts: Sequence[str], flags: OpenFlags, system: str | None
) -> Tokens:
    """The texts as the flags have them read, under a system message: the last token is the last
    before the answer, after the model's own thought where it is to think."""
    return read_prompts(model, texts, system=system, chat=not flags.plain, thought=flags.thought)


def prompt_rows(study: Study, train: Sequence[Prompt] = ()) -> pd.DataFrame:
    """The prompts' columns of scores.csv: `prompt_id, subset, split`.

    A prompt is `train` if the direction was learned from it, else `holdout`.
    """
    seen = {prompt.id for prompt in train}
    return pd.DataFrame(
        {
            "prompt_id": [p.id for p in study.prompts],
            "subset": [p.subset for p in study.prompts],
            "split": ["train" if p.id in seen else "holdout" for p in study.prompts],
        }
    )


def measured_on(
    study: Study, prompts: Sequence[Prompt], split: str = "holdout"
) -> tuple[Tokens, pd.DataFrame]:
    """The tokens of these prompts of the study, and their columns `prompt_id, subset, split`."""
    rows = pd.DataFrame(
        {
            "prompt_id": [prompt.id for prompt in prompts],
            "subset": [prompt.subset for prompt in prompts],
            "split": split,
        }
    )
    return study.tokens.chosen(study.rows(prompts)), rows


def provenance_of(study: Study, prompts: Sequence[Prompt], flags: Placed) -> Provenance:
    """Where a direction learned from these prompts of the study comes from, but for its layer and
    position (-1 both)."""
    who = identity(study.model)
    return Provenance(
        layer=-1,
        site=flags.site,
        pos=-1,
        model=who.name,
        revision=who.revision,
        seed=flags.seed,
        prompt_ids=tuple(prompt.id for prompt in prompts),
        data_hash=data_hash(prompts),
    )


def study_settings(study: Study, flags: StudyFlags) -> dict[str, Any]:
    """What the rows of this study depend on, as plain data for a run's config."""
    settings = asdict(flags)
    for name in ("out", "config", "max_missing", *MACHINES):
        settings.pop(name)
    if not flags.thought:  # as runs have it that know no thinking
        del settings["thinking"], settings["thought_tokens"]
    if "alpha_unit" in settings:
        settings["alpha_unit"] = settings["alpha_unit"] or UNITS[0]
    if settings.get("score") == "logits":
        for name in REPLY_ONLY:
            settings.pop(name)
    settings["threshold"] = study.threshold
    settings["model"] = identity(study.model).as_dict()
    settings["data"] = {"source": flags.prompts, "hash": data_hash(study.prompts)}
    settings["data"]["n_prompts"] = len(study.prompts)
    settings[TOKENS] = tokens_hash(study.tokens)
    settings["refusal_tokens"] = asdict(study.refusal)
    return settings
