"""One file a question: what it loads, its cells, its plan, and what its rows add up to."""
