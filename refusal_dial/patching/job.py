"""A patching job: the study's matched pairs, patched at the places asked for, into a run.

Knows the order of things: match, leave out pairs that tell nothing, lay out, patch, summarise. It
has no hooks or statistics of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.forecast import Grid, grid_of
from refusal_dial.job import begin, carry_out
from refusal_dial.patching.attribution import attribution_batches, strongest
from refusal_dial.patching.exact import Patching, patch_batches
from refusal_dial.patching.flags import PatchingFlags
from refusal_dial.patching.pairs import Pairs, far_apart, match
from refusal_dial.patching.places import Place, describe
from refusal_dial.patching.rows import CONTROLS
from refusal_dial.patching.summary import agreement, patching_verdict, summarise_patching
from refusal_dial.prompts import pairs as by_pair
from refusal_dial.run import Run
from refusal_dial.study import Study, study_settings
from refusal_dial.sweep import Budget
from refusal_dial.workers import Batches

log = logging.getLogger("refusal_dial")
Layout = Callable[[TransformerBridge, Pairs], Sequence[Place]]


@dataclass(frozen=True, eq=False)
class Chosen:
    """The pairs to patch, and what became of the others."""

    pairs: Pairs
    counts: Mapping[str, int]


def choose_pairs(study: Study, flags: PatchingFlags) -> Chosen:
    """The study's matched pairs whose scores differ by `--gap` or more, `--n-pairs` of them.

    `counts` says how many were left out, and in how many of those used the corrupted prompt scores
    higher than the clean one (`inverted`).
    """
    pairs = match(
        study.model, study.prompts, study.tokens, system=flags.system, chat=not flags.plain
    )
    place = {prompt.id: i for i, prompt in enumerate(study.prompts)}
    rows = [[place[p.id] for p in members] for members in by_pair(study.prompts).values()]
    clean, corrupted = study.scores[np.array(rows)].T
    used = far_apart(clean, corrupted, flags.gap, flags.n_pairs, flags.seed)
    counts = {
        "matched": len(pairs),
        "excluded": len(pairs) - len(far_apart(clean, corrupted, flags.gap)),
        "used": len(used),
        "inverted": int((clean[used] < corrupted[used]).sum()),
    }
    return Chosen(pairs.chosen(used), counts)


def conduct_patching(
    experiment: str, study: Study, flags: PatchingFlags, layout: Layout
) -> tuple[Run, pd.DataFrame]:
    """Patch the places of `layout` in the study's pairs into a run; the run and its summary.

    A finished run named by `--out` is read, not computed again.
    """
    chosen = choose_pairs(study, flags)
    run, patching = _open(experiment, study, flags, chosen, layout)
    batches = partial(patch_batches, patching=patching, scorer=study.scorer)
    close = partial(_close, flags, chosen)
    return carry_out(run, study, patching.sizes(), batches, close, flags, _grid(patching))


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
        guesses = list(attribution_batches(study.model, patching, study.scorer))
    if guesses and refine is not None:
        exact = replace(patching, places=strongest(pd.concat(guesses), patching.places, refine))
    sizes = [*map(len, guesses), *exact.sizes()]
    batches = partial(_after, guesses, partial(patch_batches, patching=exact, scorer=study.scorer))
    close = partial(_close, flags, chosen)
    return carry_out(run, study, sizes, batches, close, flags, _grid(exact))


def _grid(patching: Patching) -> Grid:
    """The cells are places; each is patched every way, and beside it stand two controls."""
    each: dict[str, Any] = {"way": ", ".join(patching.ways), "beside": ", ".join(CONTROLS)}
    names = ("layer", "site", "role", "head", "neuron")
    labels = [{name: getattr(one, name) for name in names} | each for one in patching.places]
    return grid_of({"pairs": len(patching.pairs)}, labels)


def _after(
    guesses: Sequence[pd.DataFrame], exact: Batches, model: TransformerBridge, *, skip: int
) -> Iterator[pd.DataFrame]:
    """The guesses, which are there already, then the exact patches."""
    yield from guesses[skip:]
    yield from exact(model, skip=max(0, skip - len(guesses)))


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
    flags: PatchingFlags, chosen: Chosen, scores: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The summary of all rows, and the verdict with the count of pairs."""
    summary = summarise_patching(scores, flags.threshold, flags.seed)
    verdict = {"threshold": flags.threshold, "pairs": dict(chosen.counts)}
    verdict["verdict"] = patching_verdict(summary)
    if (summary["direction"] == "attribution").any():
        verdict["agreement"] = agreement(summary)
    return summary, verdict
