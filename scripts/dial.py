"""The live dial: type a prompt, turn the dial, and see score, next tokens and reply change.

A page on this machine (127.0.0.1) over a loaded model: choose layer, site, and the learned or a
random direction. What it shows is one prompt at a time and no evidence; the experiments measure.
Needs Gradio: pip install 'refusal-dial[dial]'.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import LiveFlags


def main(flags: LiveFlags) -> None:
    from refusal_dial.report.live import gradio, load_dial, serve

    gradio()  # what is not installed is found before the model loads
    serve(load_dial(flags), flags.port)
    print("measure it: python experiments/steering_holdout_control.py")


if __name__ == "__main__":
    cli.run(main)
