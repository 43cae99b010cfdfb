"""A verification carried out into a run: measure, judge, and leave the verdict as JSON and HTML.

A finished run is read, and nothing of it is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.files import write_whole
from refusal_dial.job import begin, carry_out
from refusal_dial.run import Run, read_config, read_verdict
from refusal_dial.study import study_settings
from refusal_dial.verify import claims, harm, stability
from refusal_dial.verify.evidence import beyond_controls, beyond_length, ends, rates
from refusal_dial.verify.flags import VerifyFlags
from refusal_dial.verify.limits import not_shown
from refusal_dial.verify.measures import measure_batches, plan_of
from refusal_dial.verify.opened import Opened
from refusal_dial.verify.page import page
from refusal_dial.verify.table import Measured, tabled


@dataclass(frozen=True, eq=False)
class Verified:
    """The run, and the verdict as its summary.json has it."""

    run: Run
    verdict: Mapping[str, Any]


def conduct_verification(experiment: str, opened: Opened, flags: VerifyFlags) -> Verified:
    """Verify into a run folder, which then holds `direction.safetensors` and `verdict.html`."""
    settings = study_settings(opened.study, flags)
    settings["direction"] = {"sha256": opened.sha256, "place": _place(opened)}
    run = begin(experiment, settings, flags, {"direction": opened.given})
    plan = plan_of(opened, flags)
    close, batches = partial(_close, opened, flags), partial(measure_batches, plan=plan)
    run, _ = carry_out(run, opened.study, plan.sizes, batches, close, flags, plan.grid)
    verdict = read_verdict(run.folder)
    write_whole(run.folder / "verdict.html", page(verdict, read_config(run.folder)))
    return Verified(run, verdict)


def _place(opened: Opened) -> dict[str, Any]:
    at = opened.given.provenance
    return {"layer": at.layer, "site": at.site, "pos": at.pos, "alpha": opened.alpha}


def _close(
    opened: Opened, flags: VerifyFlags, rows: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The claims as a table, and the verdict as JSON."""
    found = Measured(
        tabled(rows),
        opened.alpha,
        flags.threshold,
        flags.level,
        flags.seed,
        opened.exploratory,
        flags.controls,
        stability.cosines(opened),
    )
    evidence = [
        *ends(found),
        beyond_controls(found),
        beyond_length(found),
        stability.stable(opened, flags),
        harm.specific(found, flags.max_benign),
        harm.divergence(found, flags.max_kl),
        harm.cost(found, flags.max_cost),
    ]
    verdict = claims.judge(evidence, flags.level)
    told = claims.plain(verdict) | {
        "direction": {
            **_place(opened),
            "file": flags.direction,
            "sha256": opened.sha256,
            "norm": opened.given.norm,
            "method": opened.given.provenance.method,
            "alpha_relative": opened.alpha / opened.study.residual_norm(_place(opened)["layer"]),
            "known": opened.known,
            "exploratory": opened.exploratory,
            "reference": opened.learned_from.name,
        },
        "gap": found.gap,
        "rates": rates(found),
        "level": flags.level,
        "not_shown": not_shown(verdict, opened, flags),
    }
    table = pd.DataFrame(
        {
            "claim": one.evidence.name,
            "status": one.status,
            "estimate": one.evidence.estimate,
            "lo": one.evidence.interval[0],
            "hi": one.evidence.interval[1],
            "unit": one.evidence.unit,
            "n": one.evidence.n,
            "p_value": one.evidence.p,
            "p_corrected": one.p_corrected,
            "smallest": np.nan if one.evidence.smallest is None else one.evidence.smallest,
            "reason": one.reason,
        }
        for one in verdict.claims
    )
    return table, claims.without_nan(told)
