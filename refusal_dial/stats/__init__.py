"""Statistics on arrays: how sure a figure is, how likely by chance, how large, what stays hidden.

`intervals` are over prompts, `p_values` are ranks and permutations with their corrections,
`effects` are sizes and the smallest effect that so many prompts could have shown. The unit is the
prompt, or the matched pair: never the token, the sample or the cell. numpy and scipy only; nothing
here knows what the numbers are.
"""

from refusal_dial.stats.intervals import (
    auc,
    auc_interval,
    gap_interval,
    mean_interval,
    rate_difference_interval,
    rate_interval,
    slope_interval,
    slopes,
)
from refusal_dial.stats.p_values import (
    benjamini_hochberg,
    gap_share,
    holm,
    max_t_p,
    permutation_p,
    rank_p,
    rank_p_values,
    sign_flip_p,
    smallest_detectable,
    smallest_detectable_rate,
    smallest_ranked,
    standardised,
)

__all__ = [
    "auc",
    "auc_interval",
    "benjamini_hochberg",
    "gap_interval",
    "gap_share",
    "holm",
    "max_t_p",
    "mean_interval",
    "permutation_p",
    "rank_p",
    "rank_p_values",
    "rate_difference_interval",
    "rate_interval",
    "sign_flip_p",
    "slope_interval",
    "slopes",
    "smallest_detectable",
    "smallest_detectable_rate",
    "smallest_ranked",
    "standardised",
]
