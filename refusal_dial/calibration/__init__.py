"""Calibration: the statistics put to cases whose answer is known.

`nulls` steers a model with directions of labels that mean nothing, `gaussian` does the same without
a model, `coverage` counts how often intervals hold the truth, `contradiction` says whether two runs
that should agree do. What all of it came to is docs/validity.md.
"""
