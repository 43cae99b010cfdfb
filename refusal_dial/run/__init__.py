"""A run: a plan carried out, here or on Ray, into a folder that survives whatever stops it."""

from refusal_dial.run.folder import find_run

__all__ = ["find_run"]
