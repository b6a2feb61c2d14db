"""Edits of the agent that several mutants share: of its frames, HAProxy's configuration, and its policy.

Each takes a function that edits, and returns the `Override` of a mutant. Most can decorate the function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import RoleArn
from iamroles_agent.policy import compiled
from iamroles_agent.policy.compiled import Index, Policy, Query
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import Server, _Peer
from iamroles_agent.spop import connection, frames, varint
from iamroles_agent.spop.connection import Connection
from iamroles_agent.spop.frames import FrameBuffer, FrameType, RawFrame
from iamroles_agent.tokens import claims
from iamroles_conformance.selftest.mutants.override import after, around, setting
from iamroles_conformance.selftest.registry import Override, both
from iamroles_tools.haproxy import render

without_memory = setting(Server, "recall", lambda _self, _key, _context: None)
"""Every NOTIFY takes the long way, through `Connection._inquire`."""


def frames_in(edit: Callable[[RawFrame], RawFrame | None]) -> Override:
    """Change each frame as it is cut from the stream (`FrameBuffer.split`); None drops it."""

    @around(FrameBuffer, "split")
    def split(sound: Any, self: FrameBuffer, data: bytes) -> Iterator[RawFrame]:
        yield from (edited for frame in sound(self, data) if (edited := edit(frame)) is not None)

    return split


def frames_out(edit: Callable[[Connection, int, bytes, bytes, int], bytes]) -> Override:
    """Change each frame as it leaves (`Connection.data_to_send`).

    `edit` gets the connection, type, both ids' bytes, payload and flags; it gives whole frames.
    """

    @around(Connection, "data_to_send")
    def data_to_send(sound: Any, self: Connection) -> bytes:
        data, out = sound(self), b""
        while data:
            length, kind = int.from_bytes(data[:4], "big"), data[4]
            flags, end = int.from_bytes(data[5:9], "big"), 4 + length
            after = varint.read(data, varint.read(data, 9, end)[1], end)[1]
            out += edit(self, kind, data[9:after], data[after:end], flags)
            data = data[end:]
        return out

    return data_to_send


def acks_out(edit: Callable[[Connection, bytes, bytes], bytes]) -> Override:
    """Change each ACK as it leaves; `edit` gets the connection, both ids' bytes and the actions."""

    @frames_out
    def each(self: Connection, kind: int, ids: bytes, payload: bytes, flags: int) -> bytes:
        if kind == FrameType.ACK:
            return edit(self, ids, payload)
        return frames.encode(FrameType(kind), ids, payload, flags)

    return each


def actions_out(edit: Callable[[bytes], bytes]) -> Override:
    """Change the actions of each ACK as it leaves."""
    return acks_out(lambda _self, ids, actions: frames.encode(FrameType.ACK, ids, edit(actions)))


def pairs_out(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    """Change the items of AGENT-HELLO and AGENT-DISCONNECT (`frames.encode_pairs`)."""
    return around(frames, "encode_pairs")(lambda sound, pairs: sound(edit(dict(pairs))))


def pair_out(key: str, value: Any) -> Override:
    """Change the value of one of these items, if it is sent at all."""
    return pairs_out(lambda pairs: pairs | {key: value} if key in pairs else pairs)


def pairs_in(edit: Callable[[dict[bytes, Any]], dict[bytes, Any]]) -> Override:
    """Change the items of HELLO and DISCONNECT as they are read (`frames.read_pairs`)."""
    return around(frames, "read_pairs")(lambda sound, frame: edit(sound(frame)))


def hello_text(edit: Callable[[bytes, str], str]) -> Override:
    """Change a text of the HELLO as it is read (`connection._text`); `edit` gets its key and the text."""
    return around(connection, "_text")(lambda sound, pairs, key, absent: edit(key, sound(pairs, key, absent)))


@around(_Peer, "_judge")
async def one_by_one(sound: Any, self: Any, event: Any) -> None:
    """Answer the questions of a connection in their order."""
    async with self.__dict__.setdefault("one", asyncio.Lock()):
        await sound(self, event)


def text(edit: Callable[[str], str], *, name: str = "haproxy.cfg") -> Override:
    """Change a file that is rendered for HAProxy. Rendering fails if the edit changes nothing."""

    @around(render, "configuration")
    def configuration(sound: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
        texts: dict[str, str] = sound(*args, **kwargs)
        edited = edit(texts[name])
        if edited == texts[name]:
            raise RuntimeError(f"the mutant found nothing to change in {name}")
        return texts | {name: edited}

    return configuration


def replaced(old: str, new: str, *, name: str = "haproxy.cfg") -> Override:
    """Replace a text everywhere in a rendered file."""
    return text(lambda text: text.replace(old, new), name=name)


def without(*parts: str, name: str = "haproxy.cfg") -> Override:
    """Drop every line of a rendered file that holds one of these texts, unless it is a comment."""

    def kept(line: str) -> bool:
        return line.strip().startswith("#") or not any(part in line for part in parts)

    return text(lambda text: "".join(filter(kept, text.splitlines(keepends=True))), name=name)


# --- the policy


def decided(edit: Callable[..., Any]) -> Override:
    """Change each decision; `edit` gets the sound one, the policy, the identity and the request."""

    @around(Policy, "decide")
    def decide(sound: Any, self: Any, identity: Any, request: Any, *more: Any) -> Any:
        return edit(sound(self, identity, request, *more), self, identity, request)

    return decide


def granted(changes: Callable[..., dict[str, Any]]) -> Override:
    """Change fields of the decisions that allow; `changes` gets the arguments of `decided`'s edit."""
    return decided(lambda found, *asked: replace(found, **changes(found, *asked)) if found.allow else found)


def refused(changes: Callable[[Any], dict[str, Any]]) -> Override:
    """Change fields of the decisions that refuse, as they are answered; `changes` gets the decision."""
    return around(gate, "encode_verdict")(
        lambda sound, decision, *rest: sound(
            decision if decision.allow else replace(decision, **changes(decision)), *rest
        )
    )


def opened(when: Callable[..., Any], **more: Any) -> Override:
    """Allow without a rule if `when` holds; it gets the arguments of `decided`'s edit."""

    @decided
    def edit(found: Any, policy: Any, *asked: Any) -> Any:
        if not when(found, policy, *asked):
            return found
        backend = policy.config.backends[0].name
        return replace(found, allow=True, reason=None, backend=backend, rule="none", **more)

    return edit


def identities(edit: Callable[[Any, Any], Any]) -> Override:
    """Judge another identity; `edit` gets the policy and the identity."""
    return around(Policy, "decide")(lambda sound, self, who, *asked: sound(self, edit(self, who), *asked))


def requests(edit: Callable[[Any, Any, Any], Any]) -> Override:
    """Judge another request; `edit` gets the policy, the identity and the request."""
    return around(Policy, "decide")(
        lambda sound, self, who, asked, now=None, _found=None: sound(self, who, edit(self, who, asked), now)
    )


@identities
def by_name(policy: Any, identity: Any) -> Any:
    """Compare roles by name alone."""
    by_name = {arn.name: arn for arn in policy._name_of}
    return identity._replace(roles=tuple(by_name.get(arn.name, arn) for arn in identity.roles))


def roles(edit: Callable[..., Any]) -> Override:
    """Change the choice of roles; `edit` gets the sound one, the policy, the identity and the wanted role."""
    return around(Policy, "_roles_of")(
        lambda sound, self, identity, asked: edit(sound(self, identity, asked), self, identity, asked)
    )


@roles
def denies_of_active_role(found: Any, policy: Any, *_asked: Any) -> Any:
    """Apply the denies of the active role alone."""
    names = frozenset(name for arn in found.active if (name := policy._name_of.get(arn)))
    return replace(found, all_names=names)


def built(edit: Callable[[Any], object]) -> Override:
    """Change each `Policy` once it is compiled."""
    return after(Policy, "__init__")(lambda self, *_args, **_how: edit(self))


def regions(chosen: Callable[[Any], bool], **changes: Any) -> Override:
    """Compile the regions of the rules that `chosen` picks with these values in place of their own."""

    @around(compiled, "compile_rule")
    def compile_rule(sound: Any, rule: Any) -> Any:
        found = sound(rule)
        return replace(found, region=replace(found.region, **changes)) if chosen(rule) else found

    return compile_rule


def is_grant(rule: Any) -> bool:
    """Tell a grant of the policy from a deny."""
    return hasattr(rule, "backend")


def is_deny(rule: Any) -> bool:
    """Tell a deny of the policy from a grant."""
    return not is_grant(rule)


def queries(edit: Callable[[Any, Any], Any]) -> Override:
    """Change how a request is looked up; `edit` gets the request and the sound query."""
    return around(Query, "from_request")(lambda sound, request, *reach: edit(request, sound(request, *reach)))


def best_grant(choose: Callable[[list[Any]], Any]) -> Override:
    """Let `choose` pick among the grants that match, of which it gets at least one, most specific first."""

    @around(Index, "best")
    def best(_sound: Any, self: Any, roles: Any, query: Any) -> Any:
        found = list(self.matches(roles, query))
        return choose(found) if found else None

    return best


def canonical(read: Callable[[Any, str], Any]) -> Override:
    """Replace the reading of paths; `read` gets the sound function and the path."""
    return both(around(gate, "canonical")(read), around(compiled, "canonical")(read))


@around(Gate, "replace")
def memory_kept(sound: Any, self: Any, policy: Any) -> None:
    """Keep remembered verdicts over a reload."""
    young = self._state.young
    sound(self, policy)
    self._state.young.update(young)


def role_arns(read: Callable[[Any, str], Any]) -> Override:
    """Replace the reading of role ARNs, in policies and tokens: `read(sound, text)`."""
    return both(around(RoleArn, "parse")(read), around(claims, "role_arn")(read))
