"""Two objectives at once: less toxicity, and refusal that stays where it belongs.

`flags` what can be asked, `opened` both studies on one model, `cells` the grid over two alphas,
`measured` its rows, `front` what they come to and which cells no other beats, `job` the order of
things, `shown` the table and the figure.
"""
