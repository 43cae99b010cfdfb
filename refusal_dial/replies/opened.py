"""A conversation, opened: a study, the prompts that are replied to, and the judge.

The same prompts may stand under several system messages; each has a name, and "" is the study's
own. Loads the judge. It does not steer, and it does not write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import directions
from refusal_dial.directions import Direction
from refusal_dial.files import located
from refusal_dial.judge_model import load_judge
from refusal_dial.judges import Judge
from refusal_dial.prompts import Prompt, data_hash
from refusal_dial.replies.flags import ReplyFlags
from refusal_dial.study import Study, study_settings
from refusal_dial.tokens import Tokens, tokenize
from refusal_dial.types import DialError

SYSTEM = "instructed"
"""The name in the rows of the system message that is compared with."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """Prompts to reply to, as tokens under each system message, and who judges the replies."""

    study: Study
    prompts: tuple[Prompt, ...]
    tokens: Mapping[str, Tokens]
    judge: Judge

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        return (*self.study.about, f"judge: {self.judge.name}, version {self.judge.version}")

    def rows(self, split: Mapping[str, str] | None = None) -> pd.DataFrame:
        """The prompts' columns: `prompt_id, subset, split, category`. `split` says by id which part
        a prompt is in; one that it does not name is `holdout`."""
        part = split or {}
        return pd.DataFrame(
            {
                "prompt_id": [p.id for p in self.prompts],
                "subset": [p.subset for p in self.prompts],
                "split": [part.get(p.id, "holdout") for p in self.prompts],
                "category": [p.category for p in self.prompts],
            }
        )


def open_conversation(
    study: Study, flags: ReplyFlags, prompts: Sequence[Prompt], instruction: str | None = None
) -> Conversation:
    """`prompts` of the study, under its own system message and, named `SYSTEM`, `instruction`.

    Raises `DialError` for a judge that cannot be used, or a chat template that takes no system
    message.
    """
    judge = load_judge(flags.judge, flags.device)
    texts, chat = [prompt.text for prompt in prompts], not flags.plain
    tokens = {"": tokenize(study.model, texts, system=flags.system, chat=chat)}
    if instruction is not None:
        tokens[SYSTEM] = tokenize(study.model, texts, system=instruction, chat=chat)
    return Conversation(study, tuple(prompts), tokens, judge)


def conversation_settings(talk: Conversation, flags: ReplyFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = study_settings(talk.study, flags)
    settings.pop("rows")
    settings["judge"] = {"name": talk.judge.name, "version": talk.judge.version}
    settings["replied_to"] = data_hash(talk.prompts)
    return settings


def direction_at(where: str, layer: int | None = None) -> Direction:
    """The direction in a file, or the one in a run folder (that of `layer` where it has several).

    Raises `DialError` for what is neither, or a run whose directions leave the choice open.
    """
    path = located(where)
    if not path.is_dir():
        return directions.load(path)
    found = sorted(path.glob("direction*.safetensors"))
    wanted = [one for one in found if one.stem == f"direction_layer{layer}"]
    if len(found) == 1 or len(wanted) == 1:
        return directions.load((wanted or found)[0])
    names = ", ".join(one.name for one in found) or "none"
    raise DialError(f"{Path(path)} holds these directions: {names}; name a file, or --layer")


def learned_from(direction: Direction, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of `prompts` that the direction was learned from: they are not held out."""
    ids = set(direction.provenance.prompt_ids)
    mine = [prompt for prompt in prompts if prompt.id in ids]
    same = bool(mine) and data_hash(mine) == direction.provenance.data_hash
    return mine if same else []
