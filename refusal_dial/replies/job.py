"""A job on replies: a conversation in, a run folder out.

Knows the order of things: generate and judge batch by batch, append, summarise. It has no hooks or
statistics of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from refusal_dial.directions import Direction
from refusal_dial.forecast import grid_of
from refusal_dial.job import begin, carry_out, files_by_layer, groups
from refusal_dial.judges import UNSCORED, Judgement, report
from refusal_dial.missing import check_share
from refusal_dial.replies.flags import ReplyFlags
from refusal_dial.replies.judged import judged_batches
from refusal_dial.replies.opened import Conversation, conversation_settings
from refusal_dial.replies.summary import coherent_range, summarise_replies
from refusal_dial.run import Run
from refusal_dial.sampling import decoding_of
from refusal_dial.spoken import spoken_text
from refusal_dial.sweep import Budget, Cell

UNJUDGED = "no label from the judge"


def conduct_replies(
    experiment: str,
    talk: Conversation,
    flags: ReplyFlags,
    cells: Sequence[Cell],
    learned: Sequence[Direction],
    rows: pd.DataFrame,
) -> tuple[Run, pd.DataFrame]:
    """Reply to every prompt under every cell, judged, into a run folder; the run and its summary.
    `rows` are the prompts' columns.

    An interrupted run is resumed after its last whole batch, a finished one named by `--out` read.
    summary.json says who judged, how good that judge is where known, how many replies it left
    unscored, how often it disagrees with the phrase list, and where coherence ends.

    Raises `DialError` where the judge leaves more than the share `max_missing` unscored.
    """
    decoding = decoding_of(flags)
    run = begin(experiment, conversation_settings(talk, flags), flags, files_by_layer(learned))
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    batches = partial(
        judged_batches,
        tokens=talk.tokens,
        prompts=talk.prompts,
        judge=talk.judge,
        scorer=talk.study.scorer,
        rows=rows,
        cells=cells,
        decoding=decoding,
        budget=budget,
    )

    def close(said: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_replies(said, flags.threshold, flags.seed)
        texts = [spoken_text(one) for one in said["completion"]]
        told = report(talk.judge, texts, [Judgement(label) for label in said["label"]])
        return summary, {
            "threshold": flags.threshold,
            "judge": told,
            "coherence": coherent_range(summary),
        }

    size = flags.batch_size
    starts = range(0, len(rows), size)
    sizes = [len(cells) * flags.samples * min(size, len(rows) - start) for start in starts]
    unscored = Counter[str]()

    def note(number: int, batch: pd.DataFrame) -> None:
        unscored[UNJUDGED] += int((batch["label"] == UNSCORED).sum())
        check_share(+unscored, sum(sizes), flags.max_missing)

    grid = grid_of(groups(rows), [cell.labels for cell in cells])
    return carry_out(run, talk, sizes, batches, close, flags, grid, note)
