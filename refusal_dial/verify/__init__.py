"""Is a direction what it is said to be: one verdict from claims, each with its control.

    flags     what can be asked
    claims    evidence to pass, fail or not shown, corrected for all claims, with a reason
    shown     the verdict for the terminal
    page      the verdict as one HTML page
    opened    the direction, prompts that it never saw, its controls
    measures  what is measured of them, in batches
    evidence  rows to evidence of an effect
    harm      rows to evidence of what should stay as it is
    stability whether the direction comes out again
    limits    what is not shown
    job       the above carried out into a run

Importing this package loads nothing.
"""
