"""The command line: flags with their defaults, how typed text becomes values, Fire behind a guard.

Nothing here is heavy: `--help` never waits for torch.
"""

from refusal_dial.cli.command_line import argument, flag, run

__all__ = ["argument", "flag", "run"]
