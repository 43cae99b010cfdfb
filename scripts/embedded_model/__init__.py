"""How the embedded model was made: the grammar of its corpus, its training, what it does.

A chat model of under four million parameters that refuses what is harmful, over-refuses by a
designed propensity, follows one system prompt and continues scenes, so that every method of the
library can be exercised and tested offline. It is no stand-in for a real model: see
`refusal_dial/embedded/weights/MODEL_CARD.md`.

`words` and `grammar` make requests; `replies` and `tone` the rest of the corpus; `corpus`,
`tokenizer` and `training` make the model; `measure` describes what it does; `prompt_set` makes
data/prompts.jsonl. The library itself needs only the weights.
"""
