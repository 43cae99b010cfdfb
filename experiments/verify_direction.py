"""Does this direction do what is claimed, and what does it break?

Takes a direction from anywhere: ours, another tool's .safetensors or .pt of plain tensors, or a
GGUF control vector. On prompts that it never saw it is turned up and down, beside random
directions, the other ways in which activations differ, what shuffled labels teach, and prompt
length; it is learned again from other prompts; and harmless prompts and replies are looked after.
Every claim passes, fails or is not shown, for a reason, with p-values corrected for all of them.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import VerifyFlags


def main(flags: VerifyFlags) -> None:
    from refusal_dial.report.verify import print_verification, write_verdict
    from refusal_dial.studies.verify import load_verification
    from refusal_dial.studies.verify_claims import conduct_verification

    verification = load_verification(flags)
    verified = conduct_verification("verify_direction", verification, flags)
    print_verification(verified.verdict)
    print(f"run: {verified.run.folder}")
    print(f"page: {write_verdict(verified.run.folder)}")


if __name__ == "__main__":
    cli.run(main)
