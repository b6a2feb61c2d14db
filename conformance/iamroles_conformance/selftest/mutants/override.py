"""The ways in which a mutant changes the agent.

Listing the mutants imports their modules in the process of the judge, and no import may change the agent. So
each function here returns an `Override`, and the child process that becomes the mutated agent calls it. A
name is replaced where the agent looks it up; each mutant says which name that is. A name that the agent does
not have is an error when the mutant is declared: AttributeError, or KeyError for a transition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import getattr_static, signature
from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_agent.spop.connection import Connection
from iamroles_conformance.selftest.registry import Override


def around(owner: Any, name: str) -> Callable[[Callable[..., Any]], Override]:
    """Put a function in the place of `owner.name`.

    The function gets the sound one, and then what the agent passes: for a method, `self` first.

    Raises:
        TypeError: it does not take all that the sound one takes: it would die of that, not of its check.
    """

    def given(replacement: Callable[..., Any]) -> Override:
        _fits(replacement, getattr(owner, name))

        def apply() -> None:
            sound = getattr(owner, name)

            def instead(*args: Any, **kwargs: Any) -> Any:
                return replacement(sound, *args, **kwargs)

            static = isinstance(getattr_static(owner, name), staticmethod | classmethod)
            setattr(owner, name, staticmethod(instead) if static else instead)

        return apply

    return given


def _fits(replacement: Callable[..., Any], sound: Any) -> None:
    try:
        taken = signature(sound).parameters.values()
    except (TypeError, ValueError):  # no function, or one in C
        return
    places = [one for one in taken if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    names = {one.name: one for one in taken if one.kind is one.KEYWORD_ONLY}
    signature(replacement).bind(sound, *places, **names)


def transition(state: Any, kind: Any) -> Callable[[Callable[..., None]], Override]:
    """As `around`, for what a connection does with a frame of this kind in this state."""

    def given(replacement: Callable[..., None]) -> Override:
        table = Connection._TRANSITIONS
        _fits(replacement, table[state, kind])
        return lambda: table.update({(state, kind): partial(replacement, table[state, kind])})

    return given


def setting(owner: Any, name: str, value: Any) -> Override:
    """Put a value in the place of `owner.name`."""
    getattr(owner, name)
    return lambda: setattr(owner, name, value)


without_memory = setting(_Peer, "_recall", lambda _self, _key, _context: None)
"""Every NOTIFY takes the long way, through `Connection._inquire`."""
