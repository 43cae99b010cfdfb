"""Replies: what a chat model says under the dial, and what a judge makes of it.

`flags` what can be asked, `opened` the conversation (study, judge, system messages), `cells` what
is done, `judged` the rows (completion, judge's label, logit score), `summary` what they come to,
`conditions` and `layers` the two comparisons, `job` the order of things, `tables`, `plots` and
`record` how it is shown.
"""
