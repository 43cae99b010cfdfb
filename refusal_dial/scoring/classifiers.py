"""Text classifiers of Hugging Face, by folder or hub id: loaded whole, or refused in one line.

A classifier that answers at all may still answer at random: weights that its files lack, a head of
other labels, padding that it takes for text, a text longer than it can read. All of that is looked
for here, and one small batch is really classified, before it is believed. Nothing of its own is
ever run: no code, no pickle. It does not know what the labels mean, nor how good it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.common import DialError, format_value, located, one_line
from refusal_dial.hub import commit_of, hub_config, hub_reachable
from refusal_dial.model.checkpoint import (
    LOADING_INFO,
    check_blueprint,
    check_folder,
    check_tokens_fit,
    check_whole,
    folder_revision,
)
from refusal_dial.model.loading import device_of
from refusal_dial.model.tokens import reader_of_text

SPECIAL = 2
"""Positions that some architectures (RoBERTa's) keep for themselves, of those that they count."""

LONGEST_TEXT = 10**7
"""A longer text than any classifier reads: what a tokenizer says that knows no limit."""

TRIAL = ("A text.", "And another one, which is longer.")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A sequence classifier, its tokenizer as it is given texts (`reader_of_text`), its labels, how
    many tokens it reads of a text, and which one it is: the hub's commit, or a hash of every byte
    of its folder."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    reads: int
    revision: str

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Float[Tensor, "text label"]:
        """The logits of texts, read as one batch; a longer text is cut at its end. Control tokens
        written out in a text are read as text."""
        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.reads,
            split_special_tokens=True,
            return_tensors="pt",
        )
        found: Tensor = self.model(**batch.to(self.model.device)).logits.float().cpu()
        return found


def config_file(source: str, revision: str | None = None) -> Path | None:
    """config.json of a folder or hub id, with sizes that can be; None where there is no such model.

    Raises `DialError` for a folder without one, and for absurd sizes.
    """
    folder = located(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise DialError(f"folder {source!r} holds no model: config.json is not in it")
        check_folder(folder, source)
        return folder / "config.json"
    found = hub_config(source, revision)
    if found is not None:
        check_blueprint(found, source)
    return found


def load_classifier(
    source: str, what: str, choices: str, device: str = "auto", revision: str | None = None
) -> Classifier:
    """The sequence classifier of a folder or hub id. Errors call it `what`, and name `choices`.

    Raises `DialError` for one that cannot be had or loaded, that lacks weights or a tokenizer that
    can pad, whose labels are not those of its head, or that cannot classify two short texts.
    """
    config = config_file(source, revision)
    if config is None:
        raise DialError(f"no {what} {source!r}: choices are {choices}")
    folder, commit = located(source), commit_of(config.parent)
    place = str(folder) if folder.is_dir() else source
    found = None if folder.is_dir() else commit[1] if commit else revision
    on = device_of(device)[0]
    try:
        model, tokenizer = _loaded(source, place, found, on)
        classifier = Classifier(
            model,
            reader_of_text(tokenizer),
            _labels(model.config.id2label),
            _reads(model.config, tokenizer),
            commit[1]
            if commit
            else folder_revision(folder)
            if folder.is_dir()
            else str(found or ""),
        )
        tried = tuple(classifier.logits(TRIAL).shape)
        if tried != (len(TRIAL), len(classifier.labels)):
            raise DialError(
                f"{len(classifier.labels)} labels, and logits of shape {tried} for two texts"
            )
    except DialError as error:
        if str(error).startswith("model "):
            raise
        raise DialError(f"{what} {source!r} cannot be used: {error}") from error
    except Exception as error:  # transformers raises many kinds for files that are not its own
        raise DialError(
            f"{what} {source!r} could not be loaded ({one_line(error)}): choices are {choices}"
        ) from error
    return classifier


def _loaded(source: str, place: str, revision: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from refusal_dial.model.loading import quiet_transformers

    quiet_transformers()
    where: dict[str, Any] = {
        "revision": revision,
        "local_files_only": not located(place).is_dir() and not hub_reachable(),
        "trust_remote_code": False,
    }
    model, report = AutoModelForSequenceClassification.from_pretrained(
        place, **where, **LOADING_INFO
    )
    check_whole(source, report)
    tokenizer = AutoTokenizer.from_pretrained(place, **where)
    if len(tokenizer) < 2:
        raise DialError("there is no tokenizer beside its weights")
    if tokenizer.pad_token_id is None:
        raise DialError(
            "its tokenizer has no pad token to read texts of different lengths with: name one in "
            "tokenizer_config.json"
        )
    check_tokens_fit(source, tokenizer, model)
    model.config.pad_token_id = tokenizer.pad_token_id  # where a text ends is read from the padding
    return model.eval().to(device), tokenizer


def _labels(names: dict[int, Any]) -> tuple[str, ...]:
    """The labels in the order of the head's outputs."""
    if sorted(names) != list(range(len(names))):
        raise DialError(
            f"id2label numbers its labels {format_value(sorted(names), 60)}, expected 0 to "
            f"{len(names) - 1}"
        )
    labels = tuple(str(names[i]) for i in range(len(names)))
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise DialError(f"id2label has the label {format_value(twice, 60)} twice")
    return labels


def _reads(config: Any, tokenizer: Any) -> int:
    """How many tokens of a text are read: the least that tokenizer and configuration say."""
    limits = []
    for key, found, kept in (
        ("model_max_length", tokenizer.model_max_length, 0),
        ("max_position_embeddings", getattr(config, "max_position_embeddings", None), SPECIAL),
    ):
        if (
            found is None
            or found == -1
            or (isinstance(found, int | float) and found > LONGEST_TEXT)
        ):
            continue
        if not isinstance(found, int) or isinstance(found, bool) or found - kept < 1:
            raise DialError(
                f"{key} is {format_value(found, 60)}: expected a whole number from {kept + 1} up"
            )
        limits.append(found - kept)
    if not limits:
        raise DialError(
            "nothing says how long a text it reads: give model_max_length in tokenizer_config.json"
        )
    return min(limits)
