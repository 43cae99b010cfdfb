"""The type checks of the tests, at the price of what they check.

jaxtyping wraps every function of the package, so that the names in the shapes of arrays agree
within a call. A function that takes and gives no array has no such names: beartype alone checks
its types as jaxtyping would, with the same error, at a tenth of the cost. Importing this module is
what does it, for the modules that jaxtyping's import hook loads afterwards.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

Check = Callable[[Any], Any]
_with_shapes = jaxtyping.jaxtyped
_alone = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def checked(what: Any = None, *, typechecker: Check) -> Any:
    """A function or a class as jaxtyping wraps it; without shapes, as beartype alone."""
    if what is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(what):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = _function(what.__init__, typechecker)
        return what
    if isinstance(what, classmethod | staticmethod):
        return type(what)(_function(what.__func__, typechecker))
    if isinstance(what, property):
        parts = (what.fget, what.fset, what.fdel)
        return property(*(part and _function(part, typechecker) for part in parts))
    return _function(what, typechecker)


def _function(function: Any, typechecker: Check) -> Any:
    written = function.__annotations__
    known = {name: _known(hint, function.__globals__) for name, hint in written.items()}
    if any(_shaped(hint) for hint in known.values()):
        return _with_shapes(function, typechecker=typechecker)
    function.__annotations__ = known
    alone = _alone(function)
    function.__annotations__ = alone.__annotations__ = written
    return alone


def _known(hint: Any, names: dict[str, Any]) -> Any:
    """What an annotation says; Any where it names what is defined later, as for jaxtyping."""
    one = SimpleNamespace(__annotations__={"hint": hint})
    try:
        return get_type_hints(one, names, include_extras=True)["hint"]
    except Exception:
        return Any


def _shaped(hint: Any) -> bool:
    """Whether an array is in it."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_shaped(part) for part in get_args(hint))


jaxtyping.jaxtyped = checked
