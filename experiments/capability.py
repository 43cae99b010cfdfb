"""What does the dial cost in usefulness: can the model still do what nobody refused?

At every step of the dial the model answers small multiple-choice tasks (arithmetic, grammar, facts,
or your own files), reads plain text, and replies to harmless prompts; beside that stands what the
dial is for, the share of prompts refused. Each figure comes with its paired difference from the
unsteered model, and random directions say what any push of the same length costs.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import CapabilityFlags


def main(flags: CapabilityFlags) -> None:
    from refusal_dial.report.capability import print_capability
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.capability import conduct_capability, load_capability

    opened = load_capability(flags)
    run, summary = conduct_capability("capability", opened, flags)
    print_capability(summary, flags.unit, read_verdict(run.folder)["chance"])
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_capability.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
