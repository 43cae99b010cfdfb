"""The exact fast engine: record one forward pass, then recompute only what an edit can change.

recording  one plain forward pass, kept: residuals, keys and values, sites
replay     what each cell changes, and only that through the blocks: branches of one trunk
score      the one door: the check that replay is exact here, `score_grid` and `residual_grid`
slopes     every direction's slope at 0 from one backward pass
"""

from refusal_dial.engine.score import Scorer, residual_grid, score_grid

__all__ = ["Scorer", "residual_grid", "score_grid"]
