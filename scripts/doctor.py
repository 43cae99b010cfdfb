"""Check the machine and the model before a long run, one line a check.

Prints what was found and, where something is wrong, what to do about it. Exit code 0: the run can
start; 1: it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import flag
from refusal_dial.cli.flags import MODEL_HELP


@dataclass(frozen=True)
class Flags:
    """What is to be run, and where."""

    model: str = flag("embedded", MODEL_HELP)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    out: str = flag("runs", "the folder that runs will be written to")


def main(flags: Flags) -> None:
    import logging

    from refusal_dial.studies.doctor import examine

    logging.getLogger("refusal_dial").setLevel(logging.WARNING)
    failed = 0
    for found in examine(flags.model, flags.device, flags.dtype, flags.out):
        remedy = f" -> {found.remedy}" if found.remedy else ""
        print(f"{found.verdict:4}  {found.check}: {found.found}{remedy}", flush=True)
        failed += found.verdict == "fail"
    print("the run can start" if not failed else f"the run cannot start: {failed} to mend")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
