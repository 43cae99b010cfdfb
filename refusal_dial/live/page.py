"""The page of the live dial: Gradio's, on this machine alone.

Listens on 127.0.0.1 and nowhere else, answers one request at a time, is never shared, and asks
nothing of the network: Gradio's analytics are off and its fonts are the system's. Prompts and
replies are shown as text. It lays out and passes on. It computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from refusal_dial.live.dial import NAMES, Dial, turned
from refusal_dial.types import DialError, printable
from refusal_dial.values import number, text, whole

HOST = "127.0.0.1"
WAITING = 8
"""Requests that may wait; more are turned away."""
REACH, STEP = 1.0, 0.05
NO_FONTS = ("system-ui", "sans-serif")
T = TypeVar("T")
Row = tuple[str, list[list[str]], str]


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
) -> Iterator[Row]:
    """(score, likeliest tokens, reply) as the page shows them while they come. Whatever arrives
    that cannot be used, a cleared slider's None among it, is answered in words in place of the
    score."""
    try:
        prompt = _read("prompt", text, "" if asked is None else asked)
        place = (
            _read("layer", whole, layer),
            _read("site", text, site),
            _read("direction", text, name),
        )
        strength = _read("alpha", number, alpha)
        if abs(strength) > REACH:
            raise DialError(f"alpha: expected a number from {-REACH:g} to {REACH:g}")
        for shown in turned(dial, prompt, *place, strength):
            kind = "refuses" if shown.refused else "complies"
            score = f"{shown.score:+.2f} ({kind}); unsteered {shown.unsteered:+.2f}"
            rows = [[repr(token), f"{p:.3f}"] for token, p in shown.tokens]
            yield score, rows, shown.reply
    except DialError as error:
        yield f"error: {printable(str(error))}", [], ""


def _read(what: str, reader: Callable[[Any], T], value: object) -> T:
    if value is None:
        raise DialError(f"{what} is empty: choose one")
    try:
        return reader(value)
    except DialError as error:
        raise DialError(f"{what}: {error}") from error


def _as_sent(value: object) -> object:
    return value


def page(dial: Dial) -> Any:
    """The page as Gradio blocks, not yet served."""
    gr, flags = gradio(), dial.flags
    layers = int(dial.study.model.cfg.n_layers)

    with gr.Blocks(title="refusal dial", analytics_enabled=False) as blocks:
        prompt = gr.Textbox(label="Prompt", lines=3, max_length=flags.max_chars)
        alpha = gr.Slider(
            -REACH, REACH, 0.0, step=STEP, label="alpha (multiples of the mean residual norm)"
        )
        with gr.Row():
            layer = gr.Slider(0, layers - 1, flags.layer, step=1, label="layer")
            site = gr.Dropdown(list(dial.sites), value=flags.site, label="site")
            name = gr.Radio(list(NAMES), value=NAMES[0], label="direction")
        score = gr.Textbox(label="score", interactive=False)
        reply = gr.Textbox(label="reply", lines=4, interactive=False)
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
            outputs=[score, tokens, reply],
            api_name="turn",
            trigger_mode="always_last",
            show_progress="hidden",
        )
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def serve(dial: Dial, port: int, wait: bool = True) -> Any:
    """Serve the page on `HOST`, until it is interrupted unless `wait` is off; the served blocks.

    Raises `DialError` for a port that is taken.
    """
    gr, blocks = gradio(), page(dial)
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
