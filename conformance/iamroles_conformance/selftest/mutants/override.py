"""The ways in which a mutant changes the agent.

Listing the mutants imports their modules in the process of the judge, and no import may change the agent. So
each function here returns an `Override`, and the child process that becomes the mutated agent calls it. A
name is replaced where the agent looks it up; each mutant says which name that is. A name that the agent does
not have is an error when the mutant is declared: AttributeError, or KeyError for a transition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import getattr_static, iscoroutinefunction, signature
from typing import Any, NoReturn

from iamroles_agent.spop.connection import Connection
from iamroles_conformance.selftest.registry import Override
from iamroles_tools.haproxy import render


def around(owner: Any, name: str) -> Callable[[Callable[..., Any]], Override]:
    """Put a function in the place of `owner.name`.

    The function gets the sound one, and then what the agent passes: for a method, `self` first.

    Raises:
        TypeError: the function does not take all that the sound one takes. It would fail because of that.
    """

    def given(replacement: Callable[..., Any]) -> Override:
        _check_signature(replacement, getattr(owner, name), None)

        def apply() -> None:
            sound = getattr(owner, name)

            def instead(*args: Any, **kwargs: Any) -> Any:
                return replacement(sound, *args, **kwargs)

            static = isinstance(getattr_static(owner, name), staticmethod | classmethod)
            setattr(owner, name, staticmethod(instead) if static else instead)

        return Override(apply, proxy=owner is render)

    return given


def _check_signature(replacement: Callable[..., Any], sound: Any, *leading: Any) -> None:
    try:
        taken = signature(sound).parameters.values()
    except (TypeError, ValueError):  # no function, or one in C
        return
    positional = [one for one in taken if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    names = {one.name: one for one in taken if one.kind is one.KEYWORD_ONLY}
    signature(replacement).bind(*leading, *positional, **names)


def before(owner: Any, name: str) -> Callable[[Callable[..., object]], Override]:
    """Call a function with what the agent passes to `owner.name`, and then the sound one."""

    def given(first: Callable[..., object]) -> Override:
        _check_signature(first, getattr(owner, name))
        return around(owner, name)(lambda sound, *args, **how: (first(*args, **how), sound(*args, **how))[1])

    return given


def after(owner: Any, name: str) -> Callable[[Callable[..., object]], Override]:
    """Call the sound `owner.name`, which is not async, and then a function with what the agent passed."""

    def given(last: Callable[..., object]) -> Override:
        _check_signature(last, getattr(owner, name))
        return around(owner, name)(lambda sound, *args, **how: (sound(*args, **how), last(*args, **how))[0])

    return given


def rescue(owner: Any, name: str, *errors: type[Exception]) -> Callable[[Callable[..., object]], Override]:
    """Call a function with the error and what the agent passed, if `owner.name` raises one of these errors.

    What it returns is the answer instead; after None the error holds.
    """

    def given(instead: Callable[..., object]) -> Override:
        def rescued(error: Exception, *args: Any, **how: Any) -> object:
            found = instead(error, *args, **how)
            if found is None:
                raise error
            return found

        def tried(sound: Any, *args: Any, **how: Any) -> object:
            try:
                return sound(*args, **how)
            except errors as error:
                return rescued(error, *args, **how)

        async def awaited(sound: Any, *args: Any, **how: Any) -> object:
            try:
                return await sound(*args, **how)
            except errors as error:
                return rescued(error, *args, **how)

        _check_signature(instead, getattr(owner, name), None)
        return around(owner, name)(awaited if iscoroutinefunction(getattr(owner, name)) else tried)

    return given


def transition(state: Any, kind: Any) -> Callable[[Callable[..., None]], Override]:
    """As `around`, for a connection's handler of a frame of this kind in this state."""

    def given(replacement: Callable[..., None]) -> Override:
        table = Connection._TRANSITIONS
        _check_signature(replacement, table[state, kind], None)
        return Override(lambda: table.update({(state, kind): partial(replacement, table[state, kind])}))

    return given


def setting(owner: Any, name: str, value: Any) -> Override:
    """Put a value in the place of `owner.name`."""
    getattr(owner, name)
    return Override(lambda: setattr(owner, name, value))


def fail(error: Exception) -> NoReturn:
    """Raise an error in an expression."""
    raise error
