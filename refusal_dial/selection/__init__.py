"""Which of many candidate directions to use: one a template position and layer, measured, ruled.

    flags       what can be asked
    rules       measured candidates to kept, dropped and chosen, and why: published rules
    layout      candidates as the refusal_direction project writes and reads them
    tables      what was tried, kept and dropped, for the terminal
    candidates  activations to one direction a position and layer
    measures    what each candidate does to held-out prompts
    job         the above carried out into a run

Importing this package loads nothing.
"""
