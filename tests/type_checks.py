"""Types and shapes of calls into the package, checked by jaxtyping and beartype at a fair price.

A check costs more than most of the functions that it checks. What a function is called with the
first times is checked, and then every so many times: a process of the suite calls the functions
that matter to it thousands of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from itertools import count
from typing import Any

FIRST, EVERY = 30, 20


def sparing(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped`, as the import hook uses it, with fewer checks."""
    made: Counter[object] = Counter()

    def jaxtyped_sparingly(*, typechecker: Any) -> Callable[[Any], Any]:
        check = partial(jaxtyped, typechecker=typechecker)

        def decorator(fn: Any) -> Any:
            code = getattr(fn, "__code__", None)
            if code is None:  # a class or a property
                return check(fn)
            if "<locals>" not in fn.__qualname__:
                return spared(fn, check)
            made[code] += 1  # a function in a function is made anew each time
            return check(fn) if made[code] <= FIRST else fn

        return decorator

    return jaxtyped_sparingly


def spared(fn: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    """The function, made into a checked one when it is first called."""
    calls, checked = count(), None

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        number = next(calls)
        if number >= FIRST and number % EVERY:
            return fn(*args, **kwargs)
        checked = checked or check(fn)
        return checked(*args, **kwargs)

    return call
