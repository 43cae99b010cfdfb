"""A job on two objectives: both studies in, a run folder out.

Knows the order of things. It has no hooks or statistics of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from refusal_dial.continuation.job import prompt_rows
from refusal_dial.forecast import grid_of
from refusal_dial.job import begin, carry_out, groups
from refusal_dial.objectives.cells import objective_cells
from refusal_dial.objectives.flags import ObjectiveFlags
from refusal_dial.objectives.front import summarise_objectives
from refusal_dial.objectives.measured import objective_batches
from refusal_dial.objectives.opened import objective_settings, open_both
from refusal_dial.run import Run
from refusal_dial.sampling import decoding_of


def conduct_objectives(experiment: str, flags: ObjectiveFlags) -> tuple[Run, pd.DataFrame]:
    """Every cell of the grid on openings and on prompts into a run folder; run and summary.

    An interrupted run is resumed, a finished one named by `--out` is read. summary.json holds the
    overlap of the two directions.
    """
    both = open_both(flags)
    learned = {"direction_toxicity": both.toxicity, "direction_refusal": both.refusal}
    cells = objective_cells(both, flags)
    openings = prompt_rows(both.openings, flags.seed)
    prompts = pd.DataFrame(
        {
            "prompt_id": [p.id for p in both.prompts],
            "subset": [p.subset for p in both.prompts],
            "split": "holdout",
        }
    )
    decoding = decoding_of(flags)
    run = begin(experiment, objective_settings(both, flags), flags, learned)
    size = flags.batch_size
    batches = partial(
        objective_batches,
        openings=both.openings.tokens,
        opening_rows=openings,
        prompts=both.tokens,
        prompt_rows=prompts,
        toxicity=both.openings.scorer,
        refusal=both.study.scorer,
        cells=cells,
        decoding=decoding,
        batch_size=size,
    )

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        return summarise_objectives(rows, flags.threshold, flags.seed), {"overlap": both.overlap}

    sizes = [
        len(cells) * each * min(size, len(part) - start)
        for part, each in ((openings, flags.samples), (prompts, 1))
        for start in range(0, len(part), size)
    ]
    grid = grid_of(groups(openings) | groups(prompts), [cell.labels for cell in cells])
    return carry_out(run, both, sizes, batches, close, flags, grid)
