"""Ordering bugs, planted one at a time: each must be found by the schedules.

A mutant replaces one method of the agent for the time of a `with`. Where things come in their usual order,
all of them behave.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from iamroles_agent.control.changes import Changes, Phase
from iamroles_agent.control.channel import message
from iamroles_agent.control.member import Member
from iamroles_agent.control.relay import Relay
from iamroles_agent.control.reloads import Reloads
from iamroles_agent.control.slots import FETCHER
from iamroles_agent.processes.fetcher import Fetcher
from iamroles_agent.processes.watch import Watch
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import _Peer
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.keyring import Keyring

MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], int]] = {}
"""By name: class, method, what replaces it (called with the sound one first), and the first seed to try."""


def mutant(owner: Any, method: str, seed: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Note a mutant under its function's name; the seed that found a rare one is tried first."""

    def note(replacement: Callable[..., Any]) -> Callable[..., Any]:
        MUTANTS[replacement.__name__.replace("_", "-")] = owner, method, replacement, seed
        return replacement

    return note


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant one bug in the agent; none for an empty name."""
    if not name:
        yield
        return
    owner, method, replacement, _ = MUTANTS[name]
    sound = getattr(owner, method)
    setattr(owner, method, lambda *args, **named: replacement(sound, *args, **named))
    try:
        yield
    finally:
        setattr(owner, method, sound)


@mutant(Changes, "prepared")
def commits_when_the_first_has_prepared(sound, changes, slot, said):
    change = changes._change
    preparing = slot.index != FETCHER and changes.phase is Phase.PREPARE
    if preparing and said.head["version"] == change.document.version:
        change.waiting.clear()
    sound(changes, slot, said)


@mutant(Changes, "came_up")
def asks_a_newborn_to_serve_that_is_behind(sound, changes, slot):
    if slot.index != FETCHER and not slot.serving and slot.version != changes.document.version:
        changes._members.send(slot.index, message("serve"))
    sound(changes, slot)


@mutant(Changes, "_give_up", 1457)
def uses_a_version_again_that_was_given_up(sound, changes, error):
    changes._versions -= 1
    sound(changes, error)


@mutant(Fetcher, "_propose")
def proposes_a_moment_later(sound, fetcher, edits):
    asyncio.get_running_loop().call_later(0.01, sound, fetcher, edits)


@mutant(Reloads, "load")
def forgets_a_reload_that_comes_during_another(sound, reloads):
    if not (reloads.busy or reloads._changes.reloading):
        sound(reloads)


@mutant(Relay, "fetcher_up")
def loses_what_a_dead_fetcher_was_asked(sound, relay):
    relay._up = True


@mutant(Gate, "judge")
async def answers_by_what_was_in_force_when_asked(sound, gate, check, context, key):
    asked = gate._current()
    gate._current = lambda: asked
    try:
        return await sound(gate, check, context, key)
    finally:
        gate.__dict__.pop("_current", None)


@mutant(Authenticator, "adopt")
def remembers_identities_across_a_reload(sound, authenticator, config, rules):
    authenticator._cache.clear = lambda: None
    sound(authenticator, config, rules)


@mutant(Keyring, "_kill", 1211)
def lets_a_lost_key_live_a_moment_longer(sound, keyring, lost):
    asyncio.get_running_loop().call_later(0.05, sound, keyring, lost)


@mutant(Watch, "_take")
async def calls_revocations_settled_before_they_are(sound, watch, stamp):
    watch._seen, watch._taken = stamp, True
    return await sound(watch, stamp)


@mutant(Changes, "proceed")
def confirms_when_all_were_told_to_switch(sound, changes, *, late=False):
    for _ in range(2):
        if changes.phase is Phase.SWITCH:
            changes._change.waiting.clear()
        sound(changes, late=late)


@mutant(Member, "_abort")
def keeps_what_was_built_for_a_version_that_was_aborted(sound, member, version):
    pass


@mutant(Member, "_stamp", 2312)
def loses_a_stamp_that_comes_during_a_change(sound, member, name, at):
    coming, member._coming = member._coming, {}
    sound(member, name, at)
    member._coming = coming


@mutant(_Peer, "_acknowledge")
def answers_in_the_order_of_the_questions(sound, peer, event, actions):
    eldest = next(iter(peer._pending.values()), event)
    sound(peer, dataclasses.replace(event, ids=eldest.ids), actions)
