"""Continuations: a behaviour that is read in what a model says, not in its next token.

`flags` what can be asked, `opened` the study (model, openings, directions), `cells` what is done,
`spoken` the rows (what was said and how it scored), `summary` and `layers` what they come to,
`results` the files beside a run, `job` the order of things, `tables` and `plots` how it is shown.
Toxicity is the behaviour at hand, and only the defaults know it: openings, a text scorer, and a
contrast make another one.
"""
