"""The columns of a run's tables: what is text, what is a number, and what each kind of table has.

A figure or a page asks for a kind of table by name (`read_table(folder, "summary", *REPLIES)`), and
so for every column that it is made of. An experiment adds its own columns, which nobody here knows.
This module holds names. It checks nothing (see `run_schema`).
"""

from __future__ import annotations

TEXTS = {"direction", "site", "prompt_id", "subset", "split", "category", "system", "label"}
TEXTS |= {"way", "role", "token", "stop", "completion", "reason"}
WHOLE = {"seed", "layer", "pos", "head", "neuron", "sample"}
NATURAL = WHOLE - {"pos"}
COUNTS = {"n", "toxicity_n", "refused_n", "cost_n"}
YES_OR_NO = {"front"}
AXES = {"alpha", "strength", "refusal_strength"}
NUMBERS = {"score", "effect", "alpha_relative", "score_mean", "score_lo", "score_hi", "shift"}
NUMBERS |= {"refusal_rate", "rate_lo", "rate_hi", "p_value", "p_covariance", "p_shuffled"}
NUMBERS |= {"p_corrected", "p_covariance_corrected", "p_shuffled_corrected", "p_holm", "p_bh"}
NUMBERS |= {"p_paired", "p_control"}
UNBOUNDED = {"reduction"}  # a share of what may be nothing

CELL = ("direction", "seed", "layer", "site", "pos", "alpha", "subset", "split")
MEAN = ("n", "score_mean", "score_lo", "score_hi")
RATES = ("refusal_rate", "rate_lo", "rate_hi")
SHIFT = ("difference", "diff_lo", "diff_hi")

SCORES = (*CELL, "prompt_id", "score")
"""Columns of scores.csv, and of summary.csv below, that are drawn of a sweep of scores."""
SUMMARY = (*CELL, *MEAN, *RATES, "p_value")
SAID_ROWS = (*SCORES, "strength", "sample", "completion")
"""Those of what was said, and how it scored."""
SAID = (*CELL, "strength", *MEAN, *SHIFT, "reduction", "p_paired")
REPLY_ROWS = (
    *(*SAID_ROWS, "alpha_relative", "system", "category"),
    *("label", "phrase", "nll", "repeated", "stop"),
)
"""Those of replies that a judge read."""
REPLIES = (
    *(*CELL, "strength", "system", "n", *RATES, *SHIFT, "logit_rate", "p_holm"),
    *("coherence", "coherence_lo", "coherence_hi"),
)
PATCHED = ("direction", "seed", "layer", "site", "subset", "split", "way", "role", "head")
PATCH_ROWS = (*PATCHED, "neuron", "prompt_id", "score", "effect")
"""Those of patching, which has no alpha, and roles that stand at several positions."""
PATCHES = (*PATCHED, "n", "p_value", "neuron", "token", "effect_mean", "effect_lo", "effect_hi")
FRONT = (
    *("direction", "seed", "strength", "refusal_strength", "front"),
    *("toxicity", "toxicity_lo", "toxicity_hi", "toxicity_n"),
    *("refused", "refused_n", "cost", "cost_n"),
)
"""Those of the summary over two dials."""
MEASURED = {*SUMMARY, *SAID, *REPLY_ROWS, *REPLIES, *PATCH_ROWS, *PATCHES, *FRONT}
MEASURED -= (TEXTS | WHOLE | AXES) - {"label", "token", "stop", "completion", "reason"}
