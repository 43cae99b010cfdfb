"""What a verdict does not show: of every verdict, and of this one.

Sentences only. They say what was not looked at, so that nobody takes it for looked at and fine.
"""

from __future__ import annotations

from refusal_dial.verify.claims import NOT_SHOWN, Verdict
from refusal_dial.verify.evidence import SAID
from refusal_dial.verify.flags import VerifyFlags
from refusal_dial.verify.opened import Opened

ALIKE = 0.5


def not_shown(verdict: Verdict, opened: Opened, flags: VerifyFlags) -> list[str]:
    """Sentences, those of this verdict first."""
    said = [
        f"{one.evidence.name}: {one.reason}" for one in verdict.claims if one.status == NOT_SHOWN
    ]
    said += _of_controls(verdict)
    if opened.exploratory:
        said.append("Exploratory: it was tested on prompts that it was learned from.")
    elif not opened.known:
        said.append(
            "The file does not say which prompts the direction was learned from: if from these, "
            "none of this is held out."
        )
    at = opened.given.provenance
    said += [
        f"Any other layer, site, position or strength than layer {at.layer}, {at.site}, position "
        f"{at.pos}, alpha ±{opened.alpha:g}.",
        "Whether replies refuse: the score reads the token that a reply opens with "
        "(experiments/eval_direction_on_xstest.py has replies judged).",
        f"Prompts of another kind than {flags.prompts}, and other models.",
        "Why it works. A handle on behaviour is not an explanation of it; prompt length is the "
        "only other contrast that was looked at.",
    ]
    return said


def _of_controls(verdict: Verdict) -> list[str]:
    """Controls that are nearly the direction itself as they are drawn."""
    for one in verdict.claims:
        near = [row for row in one.evidence.details if row.get("alike", 0.0) > ALIKE]
        near = [row for row in near if row["kind"] != "random"]
        if near:
            kinds = " and ".join(SAID[row["kind"]] for row in near)
            most = max(row["alike"] for row in near)
            return [
                f"That it does more than {kinds} as they are drawn: they are close to it "
                f"themselves (median |cosine| up to {most:.2f}), since these prompts differ mostly "
                "along it. It was set beside what else is in them."
            ]
    return []
