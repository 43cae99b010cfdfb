"""The exact fast engine: record one forward pass, then recompute only what an edit can change.

    recording   one plain forward pass, kept: residuals, keys and values, sites
    plan        what each cell of a grid touches, and which rows it really changes
    rectangles  cells and prompts grouped into batches that waste little
    branches    many cells as extra positions behind one recorded prefix
    bulk        many edits of one kind applied as one
    bare        the Hugging Face blocks without the hooks around them
    stream      a rectangle's way through the blocks
    grid        a whole grid within a memory budget (memory)
    trial       is the replay of this model exact? asked before it is trusted

`refusal_dial.engine.score_grid` is the way in. Importing this package loads nothing.
"""
