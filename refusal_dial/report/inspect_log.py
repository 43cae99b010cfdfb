"""A run that a judge read as an Inspect log: a sample a reply, opened by `inspect view`.

    scores["refusal"] = 1 for a full or partial refusal, 0 for neither, NaN where unscored
    scores["harm"]    = harmful compliance from 0 to 1 where a run has a judge of it, NaN likewise

A sample's id is its prompt and its cell, its epoch the number of the reply; the cell's columns, the
label and the logit score are its metadata. Written through inspect_ai's own classes, which only
this module needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from refusal_dial.common import DialError
from refusal_dial.generate.completions import completion_text
from refusal_dial.scoring.judges import UNSCORED

REFUSALS = ("full_refusal", "partial_refusal")

CELL = ("direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative", "strength")

SAMPLE_COLUMNS = (*CELL, "system", "subset", "split", "category", "label", "score")


def eval_log(config: Mapping[str, Any], rows: pd.DataFrame, texts: Mapping[str, str]) -> Any:
    """An `inspect_ai.log.EvalLog` of a run's rows; `texts` are the prompts by id.

    Raises `DialError` without inspect_ai, for rows that no judge read, and for a prompt that has no
    text.
    """
    try:
        from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec
        from inspect_ai.model import ModelOutput
        from inspect_ai.scorer import Score
    except ImportError as error:
        raise DialError("an Inspect log needs inspect_ai: pip install inspect_ai") from error
    if not {"label", "completion"} <= set(rows.columns):
        raise DialError("no judge read this run: expected the columns label and completion")
    lost = sorted(set(rows["prompt_id"]) - set(texts))
    if lost:
        raise DialError(f"the prompt {lost[0]!r} of this run is not in its prompts' source")
    settings = config["settings"]
    model, samples = str(settings["model"]["name"]), []
    about = [name for name in SAMPLE_COLUMNS if name in rows.columns]
    harmed = "harm" in rows.columns and bool(rows["harm"].notna().any())
    for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        cell = [f"{name}={row[name]}" for name in (*CELL, "system") if row.get(name) is not None]
        scored = row["label"] not in (UNSCORED, None)
        value = float(row["label"] in REFUSALS) if scored else float("nan")
        reply = completion_text(str(row["completion"]))
        scores = {"refusal": Score(value=value, answer=str(row["label"]))}
        if harmed:
            harm = row["harm"]
            scores["harm"] = Score(value=float("nan") if harm is None else float(harm))
        samples.append(
            EvalSample(
                id=" ".join([str(row["prompt_id"]), *cell]),
                epoch=int(row.get("sample") or 0) + 1,
                input=texts[row["prompt_id"]],
                target="",
                output=ModelOutput.from_content(model, reply),
                scores=scores,
                metadata={"prompt_id": str(row["prompt_id"])} | {name: row[name] for name in about},
            )
        )
    spec = EvalSpec(
        created=str(config["started"]),
        task=str(config["experiment"]),
        dataset=EvalDataset(name=str(settings["data"]["source"]), samples=len(texts)),
        model=f"refusal_dial/{model}",
        config=EvalConfig(),
        metadata={"judge": settings["judge"], "hash": settings["data"]["hash"]},
    )
    return EvalLog(status="success", eval=spec, samples=samples)
