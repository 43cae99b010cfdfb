"""Statistics on arrays: how sure a figure is, how likely by chance, how large, what stays hidden.

`intervals` are over prompts; `p_values` are ranks and sign flips with their corrections, effect
sizes, and the smallest effect that so many prompts could have shown. The unit is the prompt, or the
matched pair: never the token, the sample or the cell. numpy and scipy only; nothing
here knows what the numbers are.
"""

from refusal_dial.stats.intervals import (
    auc,
    mean_interval,
    rate_interval,
)
from refusal_dial.stats.p_values import (
    benjamini_hochberg,
    gap_share,
    holm,
    max_t_p,
    rank_p,
    sign_flip_p,
    smallest_detectable,
    smallest_ranked,
    standardised,
)

__all__ = [
    "auc",
    "benjamini_hochberg",
    "gap_share",
    "holm",
    "max_t_p",
    "mean_interval",
    "rank_p",
    "rate_interval",
    "sign_flip_p",
    "smallest_detectable",
    "smallest_ranked",
    "standardised",
]
