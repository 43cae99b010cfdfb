"""How the builtin judge reads a reply: its sentences, what each does, what that amounts to.

`reading` cuts a reply into plain sentences; `acts` says what each does, by the patterns of
`refusing`, `moralising` and `answering` and the word families of `vocabulary`; `verdict` weighs the
acts. `refusal_dial.judges` is what everyone else uses.
"""
