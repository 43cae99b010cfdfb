"""The embedded model: the grammar it was trained on, how it was trained, and its weights.

A chat model of under four million parameters that refuses what is harmful, over-refuses by a
designed propensity, follows one system prompt and continues scenes, so that every method of this
library can be exercised and tested offline.  It is no stand-in for a real model: see
`weights/MODEL_CARD.md`.

`words*` and `grammar` make requests, `replies`, `system_prompts` and `tone` the rest of the
corpus; `corpus`, `tokenizer` and `training` make the model; `measure`, `behaviour` and `card` say
what it does; `prompt_set` makes data/prompts.jsonl.  The rest of the library knows this package
only as a folder of weights that loads like any other.
"""
