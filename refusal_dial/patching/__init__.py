"""Activation patching over matched prompt pairs: where is the decision made?

    pairs, roles     matched prompts, and the names of their positions
    places, sides    where to patch, and what the clean and the corrupted run hold there
    exact, controls  the patch, the same-class control and the norm-matched one
    attribution      the gradient's first guess at the same cells
    rows, summary    a row per pair and cell; intervals over pairs
    flags, job       the command line's questions, and a run from start to end
    tables, plots    what people look at

Importing this package loads nothing.
"""
