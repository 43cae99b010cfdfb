"""The exact fast engine: record one forward pass, then recompute only what an edit can change.

branches   attention of many branches on one trunk
recording  one plain forward pass, kept: residuals, keys and values, sites
changes    what each cell of a grid touches, which rows it changes, which run together
replay     a whole grid through the blocks, within a memory budget
score      the one door: the check that replay is exact here, `score_grid` and `residual_grid`
"""

from refusal_dial.engine.score import Scorer, residual_grid, score_grid

__all__ = ["Scorer", "residual_grid", "score_grid"]
