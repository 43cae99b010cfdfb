"""What the files of a run hold: the columns of each kind of table, and the kind of every value.

Only names that the package knows are checked, and only where they are there: an experiment adds its
own, and a run of an older version lacks some. Every fault is a `DialError` that names the file, the
name and the value. `run_schema` says the same as a JSON Schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.common import SITES, DialError, format_value
from refusal_dial.data.prompts import SUBSETS
from refusal_dial.stats.summary import COMPARED_KINDS

# --------------------------------------------------------------------------------------------------
# The columns of a run's tables: what is text, what is a number, and what each kind of table has.
#
# A figure or a page asks for a kind of table by name (`read_table(folder, "summary", *REPLIES)`),
# and so for every column that it is made of. An experiment adds its own columns, which nobody here
# knows.


TEXT_COLUMN_NAMES = {
    "direction",
    "site",
    "prompt_id",
    "subset",
    "split",
    "category",
    "system",
    "label",
}
TEXT_COLUMN_NAMES |= {"way", "role", "token", "stop", "completion", "reason", "measure"}
TEXT_COLUMN_NAMES |= {"thought", "thought_end", "prompts", "labels"}
TEXT_COLUMN_NAMES |= {"beside", "ablated", "kind", "other", "later", "dest_role", "top_source_role"}

WHOLE = {"seed", "layer", "pos", "head", "neuron", "sample"}

NATURAL = WHOLE - {"pos"}

COUNTS = {"n", "toxicity_n", "refused_n", "cost_n"}

YES_OR_NO = {"front"}

ALPHA_COLUMNS = {"alpha", "strength", "refusal_strength"}

NUMBER_COLUMNS = {
    "score",
    "effect",
    "alpha_relative",
    "score_mean",
    "score_lo",
    "score_hi",
    "shift",
}
NUMBER_COLUMNS |= {"refusal_rate", "rate_lo", "rate_hi", "p_value", "p_covariance", "p_shuffled"}
NUMBER_COLUMNS |= {
    "p_corrected",
    "p_covariance_corrected",
    "p_shuffled_corrected",
    "p_holm",
    "p_bh",
}
NUMBER_COLUMNS |= {"harm", "harm_lo", "harm_hi"}
NUMBER_COLUMNS |= {"p_paired", "p_control", "p_slope", "p_slope_unit", "shift_lo", "shift_hi"}

UNBOUNDED = {"reduction"}  # a share of what may be nothing

CELL_COLUMNS = ("direction", "seed", "layer", "site", "pos", "alpha", "subset", "split")

MEAN = ("n", "score_mean", "score_lo", "score_hi")

RATE_COLUMNS = ("refusal_rate", "rate_lo", "rate_hi")

SHIFT = ("difference", "diff_lo", "diff_hi")

SCORES = (*CELL_COLUMNS, "prompt_id", "score")
"""Columns of scores.csv, and of summary.csv below, that are drawn of a sweep of scores."""

SUMMARY = (*CELL_COLUMNS, *MEAN, *RATE_COLUMNS, "p_value")

COMPLETION_ROWS = (*SCORES, "strength", "sample", "completion")
"""Those of completions and their scores."""

CONTINUATION_COLUMNS = (*CELL_COLUMNS, "strength", *MEAN, *SHIFT, "reduction", "p_paired")

REPLY_ROWS = (
    *(*COMPLETION_ROWS, "alpha_relative", "system", "category"),
    *("label", "phrase", "nll", "repeated", "stop"),
)
"""Those of replies that a judge read."""

REPLY_COLUMNS = (
    *(*CELL_COLUMNS, "strength", "system", "n", *RATE_COLUMNS, *SHIFT, "logit_rate", "p_holm"),
    *("coherence", "coherence_lo", "coherence_hi"),
)

THOUGHT_COLUMNS = ("thought", "thought_tokens", "thought_end")
"""What stood in the think block before a reply; runs of earlier versions lack them."""

HARM_COLUMNS = ("harm", "harm_lo", "harm_hi")
"""Harmful compliance; empty without a judge of it, and not in runs of earlier versions."""

PATCHED = ("direction", "seed", "layer", "site", "subset", "split", "way", "role", "head")

PATCH_ROWS = (*PATCHED, "neuron", "prompt_id", "score", "effect")
"""Those of patching, which has no alpha, and roles that stand at several positions."""

PATCHES = (*PATCHED, "n", "p_value", "neuron", "token", "effect_mean", "effect_lo", "effect_hi")

FRONT = (
    *("direction", "seed", "strength", "refusal_strength", "front"),
    *("toxicity", "toxicity_lo", "toxicity_hi", "toxicity_n"),
    *("refused", "refused_n", "cost", "cost_n"),
)
"""Those of the summary over two dials."""

POSITIONS = (
    *("direction", "seed", "pos", "role", "strength", "subset", "split", "measure", "n"),
    *("score_mean", "score_lo", "score_hi", "refusal_rate", "rate_lo", "rate_hi"),
    *("shift", "difference", "diff_lo", "diff_hi"),
    *("rate_difference", "rate_diff_lo", "rate_diff_hi", "p_holm"),
)
"""Those of the summary of steering at every position."""

MAP_COLUMNS = (
    *("labels", "layer", "site", "pos", "token", "residual_norm", "slope", "z", "p"),
    *("p_two_sided", "p_corrected", "slope_unit", "z_unit", "p_unit", "n", "reason"),
)
"""Those of the summary of a map of slopes, which has no cells."""

KIND_ROWS = ("direction", "ablated", "strength", "prompt_id", "subset", "split", "score")

KIND_COLUMNS = (
    *("measure", "kind", "other", "n", "value", "lo", "hi"),
    *("ceiling", "p_holm", "whole", "reach"),
)
"""Those of the rows and of the summary of kinds: a line for every two kinds and measure."""

SUBSPACES = (
    *("direction", "seed", "k", "push", "subset", "n", "score_mean", "score_lo", "score_hi"),
    *("refusal_rate", "rate_lo", "rate_hi", "kl", "gain", "gain_lo", "gain_hi", "beside"),
    *("dependence", "dependence_lo", "dependence_hi"),
)
"""Those of the summary of subspaces that are removed."""

DECOMPOSITION = (
    *("layer", "kind", "unit", "dest_role", "n", "write_refused", "write_complied"),
    *("share", "share_lo", "share_hi", "p_shuffled", "top_source_role", "d_projection"),
    *("d_score_denoise", "d_score_denoise_lo", "d_score_denoise_hi", "d_score_noise"),
    *("d_score_noise_lo", "d_score_noise_hi", "p_score", "same_class", "norm_matched"),
    *("mean_by_role", "knockout", "attribution", "repair"),
)
"""Those of the summary of who writes a direction: a row a part, no cells."""

MEASURED_COLUMNS = {
    *SUMMARY,
    *CONTINUATION_COLUMNS,
    *REPLY_ROWS,
    *REPLY_COLUMNS,
    *THOUGHT_COLUMNS,
    *HARM_COLUMNS,
    *PATCH_ROWS,
    *PATCHES,
    *FRONT,
}
MEASURED_COLUMNS -= (TEXT_COLUMN_NAMES | WHOLE | ALPHA_COLUMNS) - {
    "thought",
    "thought_end",
    "label",
    "token",
    "stop",
    "completion",
    "reason",
}


# --------------------------------------------------------------------------------------------------
# What the files of a run may hold: which settings, columns and keys are of which kind.
#
# Only names that the package knows are checked, and only where they are there: an experiment adds
# its own, and a run of an older version lacks some. What a figure or a page asks for by name must
# be there; then no row may lack what every row has, and no cell may be there twice. Every fault is
# a `DialError` that names the file, the name and the value.


LARGEST = 1e30  # as of a number on the command line

PAIRS = ("model.name", "gap", "pairs.used", "pairs.matched", "pairs.excluded")
"""Settings of a run of patching."""

Kinds = Mapping[str, tuple[type, ...]]

TEXT, LIST, OBJECT, INT, NUMBER, NONE = (
    (str,),
    (list,),
    (dict,),
    (int,),
    (int, float),
    (type(None),),
)

CONFIG_KINDS: Kinds = {
    "experiment": TEXT,
    "settings": OBJECT,
    "versions": OBJECT,
    "resumed": LIST,
    "resumed[]": OBJECT,
    "resumed[].versions": OBJECT,
    "command": TEXT,
    "settings.model": OBJECT,
    "settings.model.name": TEXT,
    "settings.model.n_layers": INT,
    "settings.data": OBJECT,
    "settings.judge": (*OBJECT, *TEXT),
    "settings.refusal_tokens": OBJECT,
    "settings.pairs": (*OBJECT, *TEXT),
    "settings.pairs.used": INT,
    "settings.pairs.matched": INT,
    "settings.pairs.excluded": INT,
    "settings.gap": NUMBER,
    "settings.layer": (*LIST, *INT, *NONE),
    "settings.site": (*TEXT, *NONE),
    "settings.alphas": (*LIST, *NONE),
    "settings.alpha_unit": (*TEXT, *NONE),
    "settings.threshold": (*NUMBER, *NONE),
    "settings.seed": INT,
    "settings.n_random": INT,
}

VERDICT_KINDS: Kinds = {
    "left_out": OBJECT,
    "left_out.rows": INT,
    "left_out.of": INT,
    "left_out.reasons": OBJECT,
    "sha256": OBJECT,
    "threshold": (*NUMBER, *NONE),
    "rounding": OBJECT,
    "rounding.dtype": TEXT,
    "rounding.n": INT,
    "rounding.rms": NUMBER,
    "rounding.largest": NUMBER,
    "judge": OBJECT,
    "judge.measured[].two_way": NUMBER,
    "judge.measured[].three_way": NUMBER,
    "judge.disagrees_with_substring": (*NUMBER, *NONE),
    "trace": LIST,
    "coherence[].tolerance": NUMBER,
    "coherence[].holds_to": NUMBER,
    "coherence[].breaks_at": (*NUMBER, *NONE),
    "coherence[].coherence_there": (*NUMBER, *NONE),
}

WORDS = {str: "text", list: "a list", dict: "an object", int: "a number", type(None): "null"}


def check_config(path: Path, config: Any, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The parsed config.json, if it is one and has the settings that are `needed` (`model.n_layers`
    is the model's). Raises `DialError` where it is not."""
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise DialError(f"{path} is not a run's config: it has no settings")
    if "experiment" not in config:
        raise DialError(f"{path} is not a run's config: it has no experiment")
    _check_kinds(path, config, CONFIG_KINDS)
    if "name" not in config["settings"].get("model", {"name": ""}):
        raise DialError(f"{path}: settings.model has no name: expected an object with the model's")
    for name in needed:
        if _lacks(config["settings"], name):
            raise DialError(
                f"{path} has no setting {name!r}, which this needs: the run is of "
                f"{config['experiment']}; --help names the experiments whose runs this takes"
            )
    return config


def check_verdict(path: Path, verdict: Any, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The parsed summary.json, if it is one and says what is `needed`. Raises `DialError` where it
    is not."""
    if not isinstance(verdict, dict):
        raise DialError(
            f"{path} is no summary: expected an object, not {format_value(verdict, 40)}"
        )
    _check_kinds(path, verdict, VERDICT_KINDS)
    if "left_out" in verdict:
        needed = (*needed, *(name for name in VERDICT_KINDS if name.startswith("left_out.")))
    for name in needed:
        if _lacks(verdict, name):
            raise DialError(f"{path}: {name} is not there: it is damaged, or of another experiment")
    return verdict


def check_header(path: Path, columns: Sequence[str]) -> None:
    """Raises `DialError` where a table names a column twice."""
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise DialError(f"{path} names the column {twice[0]!r} twice")


def check_table(
    path: Path, experiment: str, frame: pd.DataFrame, needed: Sequence[str] = ()
) -> None:
    """Raises `DialError` where a table's columns or values are not what a run writes: no rows,
    letters or infinity for a number, a negative layer or seed. Of columns that are `needed` none
    may be missing, and no row may lack its alpha or its number of prompts; with `direction` among
    them, none but the baseline may be nowhere, and none may be there twice."""
    for column in needed:
        if column not in frame:
            raise DialError(
                f"{path} has no column {column!r}, which this needs: the run is of {experiment}; "
                "--help names the experiments whose runs this takes"
            )
    if frame.empty:
        raise DialError(f"{path} holds no rows: run the experiment to its end first")
    for name in frame.columns:
        if name in NATURAL and bool((frame[name] < 0).any()):
            raise DialError(f"{path}, column {name!r}: {frame[name].min()} is less than 0")
        if name in YES_OR_NO and name in needed and not pd.api.types.is_bool_dtype(frame[name]):
            raise DialError(f"{path}, column {name!r}: expected True or False in every row")
        if name in NUMBER_COLUMNS | ALPHA_COLUMNS | COUNTS or (name in needed and _is_number(name)):
            _check_numbers(f"{path}, column {name!r}", name, frame[name], name in needed)
    if "direction" in needed:
        _check_cells(path, frame, needed)


def _is_number(name: str) -> bool:
    return name not in TEXT_COLUMN_NAMES | WHOLE | YES_OR_NO


def _check_numbers(where: str, name: str, column: pd.Series[Any], needed: bool) -> None:
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        odd = column[pd.to_numeric(column.astype(str), errors="coerce").isna()].dropna()
        found = format_value(odd.iloc[0], 40) if len(odd) else f"{column.dtype} values"
        raise DialError(f"{where}: expected numbers, not {found}")
    values = column.to_numpy(dtype=float, na_value=np.nan)
    if np.isinf(values).any() and name not in UNBOUNDED:
        raise DialError(f"{where}: a number is infinite")
    huge = values[np.isfinite(values) & (np.abs(values) >= LARGEST)]
    if needed and len(huge):
        raise DialError(f"{where}: {huge[0]:g} is more than any run measures")
    if needed and name in ALPHA_COLUMNS | COUNTS and np.isnan(values).any():
        raise DialError(f"{where}: a row has no number")
    if name in COUNTS and not (np.isnan(values) | ((values >= 0) & (values % 1 == 0))).all():
        raise DialError(f"{where}: expected how many prompts there are, in every row")


def _check_cells(path: Path, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    steered = frame[frame["direction"] != "baseline"]
    for name in {"layer", "pos"}.intersection(needed):
        lost = steered["direction"][steered[name].isna()]
        if len(lost):
            raise DialError(
                f"{path}, column {name!r}: a row of the {format_value(lost.iloc[0], 40)} "
                "direction has "
                "none, and only the baseline may"
            )
    columns = [str(name) for name in frame]
    # alpha is strength * step; rho is what was planted in a calibration, push how far one direction
    # is taken beyond 0
    axes = ALPHA_COLUMNS - {"alpha" if "strength" in frame else ""} | {"rho", "push"}
    floats = {name for name in columns if pd.api.types.is_float_dtype(frame[name])}
    named = [
        name
        for name in columns
        if name in axes or name not in MEASURED_COLUMNS | ALPHA_COLUMNS | floats
    ]
    again = frame.duplicated(named)
    if again.any():
        cell = frame.loc[again, named].iloc[0]
        lines = [name for name in named if name in CELL_COLUMNS and not pd.isna(cell[name])]
        known = ", ".join(f"{name} {cell[name]}" for name in lines if cell[name] != "")
        raise DialError(
            f"{path} holds {int(again.sum())} rows twice, the first at {format_value(known)}: "
            "run the experiment again into another folder"
        )


def _lacks(found: Any, name: str) -> bool:
    """Whether there is nothing, or null, at a dotted name: `judge.version`, and `coherence[].layer`
    in any of a list."""
    first, _, rest = name.partition(".")
    value = found.get(first.removesuffix("[]")) if isinstance(found, dict) else None
    if first.endswith("[]"):
        return not isinstance(value, list) or any(_lacks(one, rest) for one in value)
    return value is None or (bool(rest) and _lacks(value, rest))


def _there(found: Any, name: str) -> Iterator[Any]:
    """What is at a dotted name, null too, and in each of a list."""
    first, _, rest = name.partition(".")
    key = first.removesuffix("[]")
    if not isinstance(found, dict) or key not in found:
        return
    inside = found[key] if key != first and isinstance(found[key], list) else [found[key]]
    for one in inside:
        yield from _there(one, rest) if rest else [one]


def _check_kinds(path: Path, found: Mapping[str, Any], kinds: Kinds) -> None:
    for name, allowed in kinds.items():
        for value in _there(found, name):
            if not isinstance(value, allowed) or isinstance(value, bool):
                wanted = " or ".join(WORDS[kind] for kind in allowed if kind in WORDS)
                raise DialError(f"{path}: {name} is {format_value(value, 40)}: expected {wanted}")
            if isinstance(value, int | float) and not abs(value) < LARGEST:
                raise DialError(
                    f"{path}: {name} is {format_value(value, 40)}: expected a finite number"
                )
            if allowed == INT and isinstance(value, int) and value < 0:
                raise DialError(f"{path}: {name} is {value}: expected a number from 0 up")


# --------------------------------------------------------------------------------------------------
# The same as a JSON Schema of a steering run, for readers in other languages: `make schema` writes
# docs/run.schema.json. Kinds come from above. What is added here is what every steering run has.


JSON_TYPES = {str: "string", list: "array", dict: "object", int: "integer", type(None): "null"}

DIRECTION_KINDS = ("baseline", "learned", *COMPARED_KINDS)

STEERING_CONFIG: Mapping[str, Mapping[str, Any]] = {
    "started": {"type": "string", "description": "ISO 8601 with the offset from UTC"},
    "versions": {
        "required": ["python", "refusal-dial", "torch", "transformers", "transformer-lens"],
        "additionalProperties": {"type": "string"},
    },
    "resumed": {"description": "one entry each time the run went on under other versions"},
    "resumed[]": {"required": ["started", "versions"]},
    "resumed[].started": {"type": "string"},
    "resumed[].versions": {"additionalProperties": {"type": "string"}},
    "settings": {
        "description": "everything the rows depend on; equal settings, equal rows",
        "required": ["model", "data", "refusal_tokens", "threshold", "seed", "scorer"],
    },
    "settings.model": {
        "required": [
            *("name", "revision", "architecture", "n_layers", "d_model", "device", "dtype"),
        ]
    },
    "settings.model.n_layers": {"minimum": 1},
    "settings.model.d_model": {"type": "integer", "minimum": 1},
    "settings.data": {"required": ["source", "hash", "n_prompts"]},
    "settings.data.hash": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    "settings.data.n_prompts": {"type": "integer", "minimum": 1},
    "settings.refusal_tokens": {"required": ["refusal", "refusal_texts", "source"]},
    "settings.refusal_tokens.refusal": {"type": "array", "minItems": 1},
    "settings.refusal_tokens.refusal[]": {"type": "integer"},
    "settings.refusal_tokens.refusal_texts": {"type": "array", "minItems": 1},
    "settings.refusal_tokens.refusal_texts[]": {"type": "string"},
    "settings.threshold": {"type": "number"},
}

STEERING_VERDICT: Mapping[str, Mapping[str, Any]] = {
    "threshold": {"type": "number"},
    "sha256": {
        "description": "of the run's tables, and of the other keys of this file as sorted JSON",
        "required": ["scores.csv", "summary.csv", "verdict"],
        "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    },
    "verdict": {"type": "array"},
    "verdict[]": {
        "type": "object",
        "required": [
            *("layer", "site", "pos", "subset", "split"),
            *("n", "baseline_rate", "lowest", "highest"),
        ],
    },
    "verdict[].n": {"type": "integer", "minimum": 0},
    "verdict[].baseline_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
}

STEERING_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "direction": {"enum": list(DIRECTION_KINDS)},
    "site": {"enum": ["", *SITES]},
    "pos": {"maximum": -1},
    "alpha": {"description": "the length of the addition, in residual-stream units"},
    "subset": {"enum": list(SUBSETS)},
    "split": {"enum": ["train", "holdout"]},
    "prompt_id": {"minLength": 1},
    "reason": {"description": "why there is no score"},
}


def run_schema() -> dict[str, Any]:
    """The files of a steering run as a JSON Schema (2020-12), one of its `$defs` each."""
    from refusal_dial.directions.learning import FORMAT, RECORDED

    config = {"required": ["experiment", "settings", "command", "started", "versions"]}
    recorded = {
        "format": {"const": FORMAT},
        "norm": {"type": "number", "exclusiveMinimum": 0},
        "layer": {"type": "integer", "minimum": 0},
        "pos": {"type": "integer"},
        "prompt_ids": {"type": "array", "items": {"type": "string"}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A steering run of refusal_dial",
        "description": "The files of a run folder. New names may be added anywhere; those that are "
        "required stay. A row of a table is what refusal_dial.run.folder.read_table reads, with "
        "missing values as null.",
        "$defs": {
            "config": {"title": "config.json", **config, **_nested(CONFIG_KINDS, STEERING_CONFIG)},
            "scores_row": {
                "title": "a row of scores.csv",
                **_row((*SCORES, "reason"), optional=("alpha_relative",)),
            },
            "summary_row": {
                "title": "a row of summary.csv",
                **_row(SUMMARY, optional=("alpha_relative",)),
            },
            "summary": {
                "title": "summary.json",
                "required": ["threshold", "verdict"],
                **_nested(VERDICT_KINDS, STEERING_VERDICT),
            },
            "direction": {
                "title": "the metadata 'direction' of direction.safetensors, beside its one tensor "
                "'unit'",
                "type": "object",
                "required": ["format", *(name for name in RECORDED if name != "digest")],
                "properties": recorded,
            },
        },
    }


def _nested(kinds: Kinds, more: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of an object, from what its dotted names hold and what is added of them."""
    root: dict[str, Any] = {"type": "object"}
    for name in dict.fromkeys([*kinds, *more]):
        node = root
        for part in name.split("."):
            node = node.setdefault("properties", {}).setdefault(part.removesuffix("[]"), {})
            node = node.setdefault("items", {}) if part.endswith("[]") else node
        node.update(_json_type(kinds[name]) if name in kinds else {})
        node.update(more.get(name, {}))
    return root


def _json_type(allowed: tuple[type, ...]) -> dict[str, Any]:
    whole = float not in allowed
    types = [
        JSON_TYPES[kind] if whole or kind is not int else "number"
        for kind in allowed
        if kind in JSON_TYPES
    ]
    least = {"minimum": 0} if allowed == INT else {}
    return {"type": types[0] if len(types) == 1 else types, **least}


def _row(columns: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """The schema of a table's row: every column is there, but for the optional ones."""
    return {
        "type": "object",
        "required": list(columns),
        "properties": {name: _column(name) for name in (*columns, *optional)},
    }


def _column(name: str) -> dict[str, Any]:
    more = dict(STEERING_COLUMNS.get(name, {}))
    if "enum" in more:
        return more
    if name in TEXT_COLUMN_NAMES:
        return {"type": "string", **more}
    if name in WHOLE:
        least = {"minimum": 0} if name in NATURAL else {}
        return {"type": ["integer", "null"], **least, **more}
    if name in COUNTS:
        return {"type": "integer", "minimum": 0, **more}
    if name in ALPHA_COLUMNS:
        return {"type": "number", **more}
    if name in RATE_COLUMNS or name.startswith("p_"):
        return {"type": ["number", "null"], "minimum": 0, "maximum": 1, **more}
    return {"type": ["number", "null"], **more}
