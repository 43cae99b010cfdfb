"""A job: one sweep carried out into one run, with a progress bar, resumed where it stopped.

The only place where computing and writing meet. It knows the order of things (open, append,
summarise, finish, say what came out) and no statistics, hooks or models of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from refusal_dial import directions
from refusal_dial.directions import Direction
from refusal_dial.flags import StudyFlags
from refusal_dial.model import identity
from refusal_dial.run import Run, append, finish, kept_batches, open_run, read_table
from refusal_dial.study import Study, study_settings
from refusal_dial.summary import summarise, verdict
from refusal_dial.sweep import Budget, Cell, batch_sizes, sweep_batches

log = logging.getLogger("refusal_dial")
ORDER = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER += ["score", "alpha_relative"]


def conduct(
    experiment: str,
    study: Study,
    flags: StudyFlags,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    learned: Sequence[Direction] = (),
) -> tuple[Run, pd.DataFrame]:
    """Sweep the cells over the study's prompts into a run folder; the run and its summary.

    A finished run named by `--out` is read, not computed again.
    """
    run = open_run(experiment, study_settings(study, flags), flags.out)
    if run.finished:
        log.info("this run is finished already; nothing is computed again: %s", run.folder)
        return run, read_table(run.folder, "summary")
    for direction in learned:
        suffix = f"_layer{direction.provenance.layer}" if len(learned) > 1 else ""
        directions.save(direction, run.folder / f"direction{suffix}.safetensors")
    log.info("model: %s", identity(study.model))
    opening = " ".join(map(repr, study.refusal.refusal_texts))
    log.info("refusal tokens (%s): %s", study.refusal.source, opening)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    sizes = batch_sizes(len(rows), len(cells), budget)
    kept = kept_batches(run, sizes)
    batches = sweep_batches(study.model, study.tokens, rows, cells, study.scorer, budget, kept)
    with tqdm(
        total=sum(sizes),
        initial=sum(sizes[:kept]),
        unit="score",
        desc=experiment,
        disable=None,
        file=sys.stderr,
    ) as bar:
        for batch in batches:
            append(run, batch[ORDER])
            bar.update(len(batch))
    summary = summarise(read_table(run.folder, "scores"), flags.threshold, flags.seed)
    finish(run, summary, {"threshold": flags.threshold, "verdict": verdict(summary)})
    return run, summary
