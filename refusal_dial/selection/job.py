"""A selection carried out into a run: learn candidates, measure them, choose, report on others.

Three parts of the prompts play three parts: candidates are learned from the first, chosen on the
second, and the chosen one is reported on the third, which the choice never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial import directions, stats
from refusal_dial.directions import Direction, Provenance
from refusal_dial.forecast import grid_of
from refusal_dial.job import begin, carry_out
from refusal_dial.model import check_site, identity
from refusal_dial.prompts import Prompt, data_hash, of_subset
from refusal_dial.run import Run, read_verdict
from refusal_dial.selection import layout, rules
from refusal_dial.selection.candidates import (
    Candidate,
    Split,
    extract,
    raw_vectors,
    split,
    template_positions,
)
from refusal_dial.selection.flags import SelectionFlags
from refusal_dial.selection.measures import (
    Plan,
    Prompts,
    grid_scores,
    low_layers,
    measure_batches,
    measured,
)
from refusal_dial.study import Study, study_settings
from refusal_dial.sweep import Budget
from refusal_dial.types import DialError


@dataclass(frozen=True, eq=False)
class Selected:
    """The run, every candidate ranked, the chosen direction, and its report on test prompts."""

    run: Run
    ranked: pd.DataFrame
    direction: Direction
    report: Mapping[str, Any]


def conduct_selection(experiment: str, study: Study, flags: SelectionFlags) -> Selected:
    """Select a direction into a run folder, which then holds `direction.safetensors`.

    A finished run named by `--out` is read; candidates are extracted again, which is cheap.
    Raises `DialError` where every candidate was dropped, or the layout does not fit the positions.
    """
    check_site(study.model, flags.site)
    harmless = "BENIGN" if any(p.subset == "BENIGN" for p in study.prompts) else "EDGE"
    parts = [
        split(of_subset(study.prompts, name), flags.n_train, flags.n_val, flags.n_test, flags.seed)
        for name in ("HARMFUL", harmless)
    ]
    positions = flags.positions or template_positions(
        study.model, system=flags.system, chat=not flags.plain
    )
    if flags.layout == "refusal_direction" and positions != tuple(range(-len(positions), 0)):
        raise DialError(f"--layout refusal_direction needs positions -n to -1, not {positions}")
    candidates = learn(study, flags, parts, positions)
    plan = _plan(study, flags, parts, candidates)
    settings = study_settings(study, flags) | {"positions": positions}
    settings["split"] = {
        f"{name} {part}": data_hash(getattr(one, part))
        for name, one in zip(("HARMFUL", harmless), parts, strict=True)
        for part in ("train", "val", "test")
    }
    run = begin(experiment, settings, flags)
    close = partial(_close, study, flags, parts, candidates, plan)
    batches = partial(measure_batches, plan=plan)
    measures = {"measured": ", ".join(rules.MEASURES)}
    grid = grid_of(
        {"HARMFUL": len(plan.harmful.ids), harmless: len(plan.harmless.ids)},
        [{"pos": one.pos, "layer": one.layer, **measures} for one in plan.candidates],
    )
    run, ranked = carry_out(run, study, plan.sizes(), batches, close, flags, grid)
    ranked["dropped"] = ranked["dropped"].fillna("")
    pos, layer = rules.chosen(ranked)
    direction = _of(candidates, pos, layer)
    directions.save(direction, run.folder / "direction.safetensors")
    if flags.layout == "refusal_direction":
        raw = raw_vectors(candidates, int(study.model.cfg.d_model))
        layout.write_layout(run.folder, raw, ranked, pos, layer)
    return Selected(run, ranked, direction, read_report(run))


def read_report(run: Run) -> Mapping[str, Any]:
    """What summary.json says of the chosen direction."""
    return read_verdict(run.folder)


def learn(
    study: Study, flags: SelectionFlags, parts: list[Split], positions: tuple[int, ...]
) -> tuple[Candidate, ...]:
    """Candidates at every position and layer, from the training prompts."""
    who = identity(study.model)
    train = [*parts[0].train, *parts[1].train]
    about = Provenance(
        layer=0,
        site=flags.site,
        pos=-1,
        model=who.name,
        revision=who.revision,
        seed=flags.seed,
        prompt_ids=tuple(prompt.id for prompt in train),
        data_hash=data_hash(train),
    )
    harmful, harmless = (_prompts(study, one.train).tokens for one in parts)
    layers = range(int(study.model.cfg.n_layers))
    found = extract(
        study.model, harmful, harmless, positions, layers, about, flags.method, flags.batch_size
    )
    return tuple(found)


def _prompts(study: Study, some: tuple[Prompt, ...]) -> Prompts:
    rows = study.rows(some)
    return Prompts(study.tokens.chosen(rows), tuple(prompt.id for prompt in some))


def _plan(
    study: Study, flags: SelectionFlags, parts: list[Split], candidates: tuple[Candidate, ...]
) -> Plan:
    """What is measured: of the layers, those that the rule can choose from."""
    n_layers = int(study.model.cfg.n_layers)
    layers = rules.needed_layers(flags.rule, n_layers, flags.limits)
    low: tuple[int, ...] = ()
    if flags.rule == "cosmic":
        harmful, harmless = (_prompts(study, one.train).tokens for one in parts)
        low = low_layers(study.model, harmful, harmless, flags.batch_size)
    return Plan(
        tuple(one for one in candidates if one.layer in layers),
        harmful=_prompts(study, parts[0].val),
        harmless=_prompts(study, parts[1].val),
        scorer=study.scorer,
        budget=Budget(flags.batch_size, flags.engine, flags.memory_gb),
        site=flags.site,
        low=low,
    )


def _of(candidates: tuple[Candidate, ...], pos: int, layer: int) -> Direction:
    found = next(one.direction for one in candidates if (one.pos, one.layer) == (pos, layer))
    if found is None:
        raise DialError(f"no direction at position {pos}, layer {layer}: {rules.NO_DIFFERENCE}")
    return found


def _close(
    study: Study,
    flags: SelectionFlags,
    parts: list[Split],
    candidates: tuple[Candidate, ...],
    plan: Plan,
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every candidate ranked, and what the chosen one does to prompts that the choice never saw."""
    frame = measured(rows, candidates)
    ranked = rules.rank(flags.rule, frame, int(study.model.cfg.n_layers), flags.limits)
    pos, layer = rules.chosen(ranked)
    one = next(c for c in candidates if (c.pos, c.layer) == (pos, layer))
    report: dict[str, Any] = {
        "rule": flags.rule,
        "limits": {"layers": flags.limits.layers, "kl": flags.limits.kl},
        "chosen": {"pos": pos, "layer": layer, "norm": _of(candidates, pos, layer).norm},
        "tried": len(ranked),
        "kept": int((ranked["dropped"] == "").sum()),
        "dropped": rules.dropped(ranked),
        "cosmic_layers": list(plan.low),
        "test": _on_test(study, plan, parts, one, flags.seed),
    }
    report["limits"]["induce"] = flags.limits.induce
    return ranked, report


def _on_test(
    study: Study, plan: Plan, parts: list[Split], one: Candidate, seed: int
) -> dict[str, Any]:
    """Base and changed means on test prompts, and the mean paired change with its interval."""
    groups = {"bypass": parts[0].test, "induce": parts[1].test, "kl": parts[1].test}
    found = {}
    for measure, prompts in groups.items():
        tokens = _prompts(study, prompts).tokens
        base = study.scores[study.rows(prompts)]
        base = np.zeros_like(base) if measure == "kl" else base
        changed = grid_scores(study.model, tokens, [one], measure, plan)[0].numpy()
        low, high = stats.mean_interval(changed - base, seed=seed)[0]
        found[measure] = {
            "n": len(prompts),
            "base": float(base.mean()),
            "changed": float(changed.mean()),
            "change": float((changed - base).mean()),
            "interval": [float(low), float(high)],
        }
    return found
