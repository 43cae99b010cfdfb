"""One prompt under one step of the dial: its score, its next tokens, and its reply as it comes.

    h <- h + alpha · |h| · direction   at the last prompt token and every new one

|h| being the mean norm of the study's prompts at that layer and site, so that alpha is in the same
unit wherever it is turned. At alpha 0 nothing is hooked: the model is as it is. Directions are
learned from EDGE prompts (top-scored minus bottom-scored) or come from a file; the random one is as
long. What is read here was typed a moment ago: it shows what a direction does, and proves nothing.

This module computes. It knows no page, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction, load
from refusal_dial.flags import STEERABLE, SteeringFlags
from refusal_dial.generate import stream
from refusal_dial.hooks import steer
from refusal_dial.live.flags import LiveFlags
from refusal_dial.model import check_layers, check_site
from refusal_dial.prompts import of_subset
from refusal_dial.steering import learn, placed
from refusal_dial.study import Study, open_study, study_of
from refusal_dial.tokens import last_logits, tokenize
from refusal_dial.types import DialError, Hook, hook_name, one_of

N_TOKENS = 8
NAMES = ("learned", "random")
POS = -1


@dataclass(frozen=True)
class Shown:
    """What is known so far. `tokens` are the likeliest next ones with their probabilities, most
    likely first; `unsteered` is the score at alpha 0."""

    score: float
    unsteered: float
    refused: bool
    tokens: Sequence[tuple[str, float]]
    reply: str
    done: bool


@dataclass(frozen=True, eq=False)
class Dial:
    """A study whose every layer can be steered, opened site by site as they are asked for."""

    flags: LiveFlags
    study: Study
    given: Direction | None
    opened: dict[str, Study] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this architecture has."""
        return tuple(s for s in STEERABLE if hook_name(s, 0) in self.study.model.hook_dict)

    def at(self, site: str) -> Study:
        """The study with its activations at this site."""
        if site not in self.opened:
            self.opened[site] = study_of(self.study.model, self.flags, None, site, POS)
        return self.opened[site]

    def directions(self, layer: int, site: str) -> Mapping[str, Direction]:
        """The directions of `NAMES` at this place. Raises `DialError` for one the model lacks."""
        study, flags = self.at(site), self.steering(site)
        if self.given is not None:
            known = placed(self.given, study, flags, layer)
        else:
            one = replace(study, layers=(layer,), activations=study.activations[[layer]])
            (known,) = learn(one, flags, of_subset(study.prompts, "EDGE"))
        (random,) = random_directions(known, 1, self.flags.seed)
        return dict(zip(NAMES, (known, random), strict=True))

    def steering(self, site: str) -> SteeringFlags:
        return SteeringFlags(site=site, pos=POS, seed=self.flags.seed, k=self.flags.k)


def open_dial(flags: LiveFlags) -> Dial:
    """Load the model and learn where the dial stands at first.

    Raises `DialError` for whatever of the flags cannot be used.
    """
    given = load(flags.direction) if flags.direction is not None else None
    study = open_study(flags, None, flags.site, POS)
    dial = Dial(flags, study, given, {flags.site: study})
    check_layers(study.model, [flags.layer])
    dial.directions(flags.layer, flags.site)
    return dial


def hooks_at(dial: Dial, layer: int, site: str, name: str, alpha: float) -> list[Hook]:
    """The hooks of one step of the dial; none at alpha 0.

    Raises `DialError` for a layer, site or direction that is not there, or an alpha that is no
    number.
    """
    check_layers(dial.study.model, [layer])
    check_site(dial.study.model, site)
    if name not in NAMES:
        raise one_of(name, NAMES, "direction")
    if alpha != alpha or abs(alpha) == float("inf"):
        raise DialError(f"expected a number for alpha, not {alpha}")
    if alpha == 0:
        return []
    length = alpha * dial.at(site).residual_norm(layer)
    return [steer(dial.directions(layer, site)[name], length, layer=layer, pos=POS, site=site)]


def turned(
    dial: Dial, text: str, layer: int, site: str, name: str, alpha: float
) -> Iterator[Shown]:
    """What the prompt comes to at this step: first its score and next tokens, then the greedy reply
    as it grows; the last is `done`.

    Raises `DialError` for what `hooks_at` and `tokenize` refuse, or a prompt that is empty or
    longer than `--max-chars`.
    """
    flags, model = dial.flags, dial.study.model
    if not text.strip():
        raise DialError("the prompt is empty: type one")
    if len(text) > flags.max_chars:
        raise DialError(
            f"the prompt is {len(text):,} characters long, and {flags.max_chars:,} are read at most"
        )
    hooks = hooks_at(dial, layer, site, name, alpha)
    tokens = tokenize(model, [text], system=flags.system, chat=not flags.plain).on(model)
    logits = last_logits(model, tokens, hooks)
    score = float(dial.study.scorer(logits)[0])
    base = score if not hooks else float(dial.study.scorer(last_logits(model, tokens))[0])
    top = logits[0].double().softmax(-1).topk(min(N_TOKENS, logits.shape[-1]))
    likely = [
        (str(model.tokenizer.decode([int(i)])), float(p))
        for p, i in zip(top.values, top.indices, strict=True)
    ]
    shown = Shown(score, base, score > flags.threshold, likely, "", False)
    yield shown
    said: list[int] = []
    room = max(0, int(model.cfg.n_ctx) - tokens.ids.shape[1])
    for token in stream(model, tokens, hooks, min(flags.max_new_tokens, room)):
        said.append(token)
        shown = replace(shown, reply=str(model.tokenizer.decode(said, skip_special_tokens=True)))
        yield shown
    yield replace(shown, done=True)
