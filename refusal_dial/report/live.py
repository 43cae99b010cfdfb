"""The live dial: one prompt on a loaded model, steered as far as a slider is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import plotly.graph_objects as go

from refusal_dial.cells import SteeringPlace, alphas_in, cells_at
from refusal_dial.cli.command_line import parse_number, parse_text, parse_whole
from refusal_dial.cli.flags import STEERABLE, LiveFlags, SteeringFlags
from refusal_dial.common import DialError, Hook, T, hook_name, one_of, printable
from refusal_dial.data.prompts import load_prompts, of_subset
from refusal_dial.directions.files import direction_at
from refusal_dial.directions.learning import Direction, random_directions
from refusal_dial.generate.decode import stream
from refusal_dial.generate.trace import TokenTrace, token_traces
from refusal_dial.model.loading import check_layers, check_site, load_model
from refusal_dial.model.tokens import last_logits
from refusal_dial.report.trace import trace_figure
from refusal_dial.studies.base import Study, prompt_tokens, study_of
from refusal_dial.studies.steering import at_place, layers_to_use, learn

# --------------------------------------------------------------------------------------------------
# One prompt under one step of the dial: its score, its next tokens, and its reply as it comes.
#
#     h <- h + alpha · |h| · direction   at the last prompt token and every new one
#
# |h| being the mean norm of the study's prompts at that layer and site, so that alpha is in the
# same unit wherever it is turned. At alpha 0 nothing is hooked: the model is as it is. Directions
# are learned from EDGE prompts (top-scored minus bottom-scored) or come from a file; the random one
# is as long. What is read here was typed a moment ago: it shows what a direction does, and proves
# nothing.


N_TOKENS = 8

LIVE_DIRECTIONS = ("learned", "random")

LIVE_POS = -1


@dataclass(frozen=True)
class DialState:
    """What is known so far. `tokens` are the likeliest next ones with their probabilities, most
    likely first; `unsteered` is the score at alpha 0, and `plain` the reply there, which comes
    after the steered one."""

    score: float
    unsteered: float
    refused: bool
    tokens: Sequence[tuple[str, float]]
    reply: str
    done: bool
    plain: str = ""
    trace: Sequence[TokenTrace] = ()


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
            self.opened[site] = study_of(self.study.model, self.flags, None, site, LIVE_POS)
        return self.opened[site]

    def directions(self, layer: int, site: str) -> Mapping[str, Direction]:
        """The directions of `LIVE_DIRECTIONS` at this place. Raises `DialError` for one the model
        lacks."""
        study, flags = self.at(site), self.steering(site)
        if self.given is not None:
            known = at_place(self.given, study, flags, layer)
        else:
            one = replace(study, layers=(layer,), activations=study.activations[[layer]])
            (known,) = learn(one, flags, of_subset(study.prompts, "EDGE"))
        (random,) = random_directions(known, 1, self.flags.seed)
        return dict(zip(LIVE_DIRECTIONS, (known, random), strict=True))

    def steering(self, site: str) -> SteeringFlags:
        return SteeringFlags(site=site, pos=LIVE_POS, seed=self.flags.seed, k=self.flags.k)


def load_dial(flags: LiveFlags) -> Dial:
    """Load the model and learn where the dial stands at first.

    Raises `DialError` for whatever of the flags cannot be used.
    """
    asked = () if flags.layer is None else (flags.layer,)
    (layer,) = layers_to_use(flags.direction, asked, flags.site)
    where, flags = flags.direction, replace(flags, layer=layer)
    given = None if where is None else direction_at(where, layer, flags.site)
    load_prompts(flags.prompts)  # a mistake in them is found before the model loads
    model = load_model(flags.model, flags.device, flags.dtype, device_map=flags.device_map)
    study = study_of(model, flags, None, flags.site, LIVE_POS)
    dial = Dial(flags, study, given, {flags.site: study})
    check_layers(study.model, [layer])
    dial.directions(layer, flags.site)
    return dial


def hooks_at(dial: Dial, layer: int, site: str, name: str, alpha: float) -> list[Hook]:
    """The hooks of one step of the dial; none at alpha 0.

    Raises `DialError` for a layer, site or direction that is not there, or an alpha that is no
    number.
    """
    check_layers(dial.study.model, [layer])
    check_site(dial.study.model, site)
    if name not in LIVE_DIRECTIONS:
        raise one_of(name, LIVE_DIRECTIONS, "direction")
    if alpha != alpha or abs(alpha) == float("inf"):
        raise DialError(f"expected a number for alpha, not {alpha}")
    place = SteeringPlace(layer, site, LIVE_POS, dial.at(site).residual_norm(layer))
    direction = dial.directions(layer, site)[name]
    step = alphas_in([alpha], "residual", place.norm, direction)
    (cell,) = cells_at([(name, None, direction)], step, place)
    return list(cell.hooks)


def turn(
    dial: Dial, text: str, layer: int, site: str, name: str, alpha: float
) -> Iterator[DialState]:
    """What the prompt comes to at this step: first its score and next tokens, then the greedy reply
    as it grows; the last is `done`, and has the unsteered reply and the trace too.

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
    tokens = prompt_tokens(model, [text], flags, flags.system).on(model)
    logits = last_logits(model, tokens, hooks)
    score = float(dial.study.scorer(logits)[0])
    base = score if not hooks else float(dial.study.scorer(last_logits(model, tokens))[0])
    top = logits[0].double().softmax(-1).topk(min(N_TOKENS, logits.shape[-1]))
    likely = [
        (str(model.tokenizer.decode([int(i)])), float(p))
        for p, i in zip(top.values, top.indices, strict=True)
    ]
    known = DialState(score, base, score > dial.study.threshold, likely, "", False)
    yield known
    found: list[int] = []
    room = max(0, int(model.cfg.n_ctx) - tokens.ids.shape[1])
    for token in stream(model, tokens, hooks, min(flags.max_new_tokens, room)):
        found.append(token)
        known = replace(known, reply=str(model.tokenizer.decode(found, skip_special_tokens=True)))
        yield known
    ids = list(stream(model, tokens, [], min(flags.max_new_tokens, room))) if hooks else found
    plain = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    direction, norm = dial.directions(layer, site)[name], dial.at(site).residual_norm(layer)
    ways: dict[str, tuple[list[int], list[Hook]]] = {"unsteered": (ids, [])}
    if hooks:
        ways[f"alpha {alpha:+g}"] = (found, hooks)
    trace = [
        one
        for way, (reply, acting) in ways.items()
        for one in token_traces(model, tokens, [reply], direction, norm, acting, way)
    ]
    yield replace(known, done=True, plain=plain, trace=trace)


# --------------------------------------------------------------------------------------------------
# The page of the live dial: Gradio's, on this machine alone.
#
# Listens on 127.0.0.1 and nowhere else, answers one request at a time, is never shared, and asks
# nothing of the network: Gradio's analytics are off and its fonts are the system's. Prompts and
# replies are shown as text. It lays out and passes on.


HOST = "127.0.0.1"

WAITING = 8
"""Requests that may wait; more are turned away."""

REACH, STEP = 1.0, 0.05

NO_FONTS = ("system-ui", "sans-serif")


DialRow = tuple[str, list[list[str]], str, str, Any]


def gradio() -> Any:
    """Gradio, with what would call home switched off before it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise DialError("the live dial needs Gradio: pip install 'refusal-dial[dial]'") from error
    return gradio


def answered(
    dial: Dial, asked: object, alpha: object, layer: object, site: object, name: object
) -> Iterator[DialRow]:
    """(score, likeliest tokens, reply, unsteered reply, figure of the trace) as the page shows them
    while they come, the figure with the last. Whatever arrives that cannot be used, a cleared
    slider's None among it, is answered in words in place of the score."""
    try:
        prompt = _read("prompt", parse_text, "" if asked is None else asked)
        place = (
            _read("layer", parse_whole, layer),
            _read("site", parse_text, site),
            _read("direction", parse_text, name),
        )
        strength = _read("alpha", parse_number, alpha)
        if abs(strength) > REACH:
            raise DialError(f"alpha: expected a number from {-REACH:g} to {REACH:g}")
        for found in turn(dial, prompt, *place, strength):
            kind = "refuses" if found.refused else "complies"
            score = f"{found.score:+.2f} ({kind}); unsteered {found.unsteered:+.2f}"
            rows = [[repr(token), f"{p:.3f}"] for token, p in found.tokens]
            figure = _traced(found.trace) if found.trace else None
            yield score, rows, found.reply, found.plain or "...", figure
    except DialError as error:
        yield f"error: {printable(str(error))}", [], "", "", None


def _traced(trace: Sequence[TokenTrace]) -> go.Figure:
    lines = [{"panel": "", **asdict(one)} for one in trace]
    figure = trace_figure(lines, "")  # the page has its title, and says how wide it may be
    return figure.update_layout(width=None, autosize=True, title=None, margin={"t": 24})


def _read(what: str, reader: Callable[[Any], T], value: object) -> T:
    if value is None:
        raise DialError(f"{what} is empty: choose one")
    try:
        return reader(value)
    except DialError as error:
        raise DialError(f"{what}: {error}") from error


def _as_sent(value: object) -> object:
    return value


ABOUT = (
    "Choose or type a prompt and press Shift+Enter, then turn alpha: up, the model refuses more; "
    "down, less. One prompt is no evidence; the experiments measure."
)


TRACE = "what the direction reads at every token"


def examples_of(dial: Dial) -> list[str]:
    """The first prompt of each subset and one more EDGE, where the dial has most room to turn;
    those that are not too long to be read."""
    short = [one for one in dial.study.prompts if len(one.text) <= dial.flags.max_chars]
    wanted = {"EDGE": 2, "HARMFUL": 1, "BENIGN": 1}
    return [
        text
        for subset, n in wanted.items()
        for text in [one.text for one in short if one.subset == subset][:n]
    ]


def live_page(dial: Dial) -> Any:
    """The page as Gradio blocks, not yet served."""
    gr, flags = gradio(), dial.flags
    layers = int(dial.study.model.cfg.n_layers)

    with gr.Blocks(title="refusal dial", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Refusal dial\n\n{ABOUT}")
        prompt = gr.Textbox(label="Prompt", lines=3, max_length=flags.max_chars)
        if shown := examples_of(dial):
            gr.Examples(shown, inputs=prompt, label="Examples")
        alpha = gr.Slider(-REACH, REACH, 0.0, step=STEP, label="alpha (mean residual norms)")
        with gr.Row():
            layer = gr.Slider(0, layers - 1, flags.layer, step=1, label="layer")
            site = gr.Dropdown(list(dial.sites), value=flags.site, label="site")
            name = gr.Radio(list(LIVE_DIRECTIONS), value=LIVE_DIRECTIONS[0], label="direction")
        score = gr.Textbox(label="score", interactive=False)
        with gr.Row():
            plain = gr.Textbox(label="unsteered reply", lines=4, interactive=False)
            reply = gr.Textbox(label="reply", lines=4, interactive=False)
        trace = gr.Plot(label=TRACE)
        tokens = gr.Dataframe(
            headers=["next token", "probability"],
            datatype=["str", "str"],
            label="likeliest next tokens",
            interactive=False,
        )
        asked = [prompt, alpha, layer, site, name]
        for one in asked:
            one.preprocess = _as_sent  # Gradio's own raises for a cleared slider; `answered` says
        gr.on(
            [prompt.submit, *(one.change for one in (alpha, layer, site, name))],
            lambda *asked: (
                yield from answered(dial, *asked)
            ),  # bare: Gradio looks for a generator function
            inputs=asked,
            outputs=[score, tokens, reply, plain, trace],
            api_name="turn",
            trigger_mode="always_last",
            show_progress="hidden",
        )
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def serve(dial: Dial, port: int, wait: bool = True) -> Any:
    """Serve the page on `HOST`, until it is interrupted unless `wait` is off; the served blocks.

    Raises `DialError` for a port that is taken.
    """
    gr, blocks = gradio(), live_page(dial)
    theme = gr.themes.Base(font=list(NO_FONTS), font_mono=["monospace"])
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port or free_port(),
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size="1b",
            footer_links=[],
            theme=theme,
        )
    except OSError as error:
        raise DialError(f"port {port} on {HOST} cannot be used: give another --port") from error
    if wait:
        print(f"the dial: {blocks.local_url} (on this machine only; Ctrl-C ends it)", flush=True)
        try:
            blocks.block_thread()
        finally:
            blocks.close()
    return blocks


def free_port() -> int:
    """A port that nothing on this machine listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
