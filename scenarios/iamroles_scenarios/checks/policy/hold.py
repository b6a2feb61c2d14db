"""The policy in force holds: after a crash, across a reload, and beside hostile clients."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Inapplicable, StageError
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.engine.bench import ALLOWED, Bench, Pending, bench, beside, own_bench, refused
from iamroles_scenarios.engine.events import EVENT_DEADLINE
from iamroles_scenarios.engine.key_sets import keeping
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url

_SHUT = refused("no_grant", status=403)
_FETCH = 3.0
"""Seconds, times the scale, by which the keys come late while the policy changes."""
_LIMITS = {"method": 32, "host": 260, "path": 4096, "role": 640}
"""Bytes: SPEC.md 2.6."""
_NESTED = "{" + '"x":[' * 17
"""The begin of a token's header with so many lists that an agent may look at the brackets alone."""
_RUNS = [
    *(("path", 2880, run) for run in ("a", "eyJ", "a.", "/a", "%41")),
    *(("header", 5760, run) for run in ('"', r"\"", r"\\", "[", "{", '"x":', "1", " ")),
]
"""Bytes of a text, of which an agent may look at the first kilobytes alone, and what it repeats: a search
that begins at each letter reads all each time."""
_LONGER_BY, _FEW, _PROMPT = 16, 9, 0.02
"""How much shorter another such text is; how often both are asked; and seconds too few to say anything."""
_ROUNDS = 60
_MULTIPLE, _FLOOR = 25.0, 0.1
"""Beside hostile texts, the slowest good answers may take this multiple of their time alone, and at least the
floor in seconds."""


def _without_reads(here: Bench) -> dict[str, Any]:
    """Return the world's policy without the grant of the reader's route."""
    policy = here.loan.policy
    kept = [grant for grant in policy["grants"] if grant["backend"] != "orders-ro"]
    return {**policy, "grants": kept}


@check("policy.hold.restart", "RELOAD-RESTART-001", features={"oidc", "reload"})
def restart(target: Target) -> None:
    """An agent that died after a reload comes back with the policy that it had accepted.

    A reload takes the grant away; then the agent is killed and started again twice, as in a crash loop. It
    keeps its state, and no change of a key makes it save that once more. At last it is stopped, and started
    on another world file.
    """
    agent, keys = keeping(target.stage), {"refresh": "5m"}
    with bench(target, "orders", "policy.hold.restart", own=True, agent=agent, keys=keys) as here:
        here.expect("before the reload", here.token(), ALLOWED)
        here.close()
        here.must_reload(_without_reads(here), "without the reader's grant")
        for crash in (1, 2):
            here.world.agent.kill()  # at once: what is confirmed is saved
            here.world.agent.start()
            here.expect(f"after crash {crash}", here.token(), _SHUT, within=EVENT_DEADLINE)
            here.close()
        if here.world.agent.stop() == 0:
            here.world.agent.write(here.world.document)
            here.world.agent.start()
            here.expect("started on a file with the grant", here.token(), ALLOWED, within=EVENT_DEADLINE)


@check("policy.hold.first-world", "START-WORLD-001", features={"oidc"})
def first_world(target: Target) -> None:
    """An agent that cannot use its first world says in its log which key is at fault, and ends.

    The world of a fresh agent has an unknown key; a second address at which somebody else listens; or a log
    that nobody can open, which an agent may ignore.
    """
    if not target.agent.runs:
        raise Inapplicable("process of its own")
    worlds: dict[str, Any] = {
        "metods": {"grants": [{"id": "R1", "metods": ["GET"]}]},
        "audit path": {"audit": {"path": "/dev/null/log"}},
    }
    with ExitStack() as taken:
        if target.stage.kind == "processes":
            other = taken.enter_context(socket.create_server(("127.0.0.1", 0)))
            worlds["listen"] = {"agent": {"listen": [f"127.0.0.1:{other.getsockname()[1]}"]}}
        for key, wrong in worlds.items():
            _must_end(target, key, wrong)


def _must_end(target: Target, key: str, wrong: dict[str, Any]) -> None:
    try:
        with own_bench(target, "orders", override=wrong, haproxy=False):
            if "audit" not in wrong:
                said = Evidence(expected="its end")
                raise CheckFailed(f"an agent serves in a world that it cannot use: {key}", said)
    except StageError as error:
        if " ended " not in error.message:
            raise
        if not all(word in error.logs["agent"] for word in key.split()):
            said = Evidence(expected=f"the key in its log: {key}", logs=error.logs)
            raise CheckFailed("an agent ended without a word on its world", said) from None


@check("policy.hold.shadow", "SHADOW-GRANT-001", "SHADOW-DENY-001", features={"oidc"})
def shadow(target: Target) -> None:
    """A whole policy in shadow (`agent.shadow_policy`) opens nothing and closes nothing.

    It denies what the policy in force allows, and allows what that leaves closed. An agent may ignore it.
    """
    issuer = {"name": "corp", "issuer": "urn:corp", "jwks_uri": "https://127.0.0.1:9/keys"}
    role = {"name": "reader", "arn": f"{ARN}reader"}
    grant = {"id": "S1", "roles": ["reader"], "methods": ["GET"], "path": "/shut", "backend": "orders-ro"}
    tried = {
        "version": 1,
        "issuers": [{**issuer, "audiences": ["edge"], "algorithms": ["ES256"]}],
        "roles": [role],
        "backends": [{"name": "orders-ro", "servers": ["127.0.0.1:9"]}],
        "grants": [grant],
        "denies": [{"id": "S2", "roles": ["*"], "path": "/orders"}],
    }
    named, files = {"agent": {"shadow_policy": "shadow.json"}}, {"shadow.json": json.dumps(tried)}
    with own_bench(target, "orders", override=named, files=files, haproxy=False) as here:
        token = here.token()
        for again in ("", ", again"):
            here.expect(f"a path that a policy in shadow denies{again}", token, ALLOWED)
            here.expect(f"a path that a policy in shadow opens{again}", token, _SHUT, path="/shut")


@check("policy.hold.in-flight", "RELOAD-INFLIGHT-001", features={"oidc", "reload"})
def in_flight(target: Target) -> None:
    """A question that waits for keys while the policy changes is judged by the new policy."""
    # The agent waits for as long as the keys take, or no policy judges the question.
    keys_table = {"refresh": "5m", "cooldown": "100ms", "timeout": f"{2 * _FETCH:g}s"}
    with bench(target, "orders", "policy.hold.in-flight", own=True, keys=keys_table) as here:
        here.expect("before", here.token(), ALLOWED)
        issuer = here.issuer()
        rest(here.seconds(0.1))  # the cooldown that the last fetch began
        before = issuer.counters().get("jwks", 0)
        issuer.rotate()
        issuer.fault("jwks", "slow", seconds=here.seconds(_FETCH))
        due = time.time() + here.seconds(_FETCH)  # the agent fetches later, so the keys come later
        question = Pending(here.another(), here.token())
        issuer.wait_for("jwks", before + 1, here.seconds(EVENT_DEADLINE))
        began = time.time()
        here.must_reload(_without_reads(here), "without the reader's grant")
        here.in_time(due, "a reload before the keys come")
        seen = question.answer(here.seconds(_FETCH + EVENT_DEADLINE))
        if seen.allow:
            raise here.failed("the old policy allowed a request after the reload was confirmed", seen)
        if seen.at < began:  # 4.4 lets an agent refuse at once
            raise Inapplicable("question that waits for keys")


def _of_length(name: str, size: int) -> dict[str, Any]:
    """Return a request with a text of this length in bytes, which the agent would else judge as usual."""
    match name:
        case "method":
            return {"method": "M" * size}
        case "host":
            label = "a" * 60
            text = ".".join([label] * (size // 61 + 1))[: size - 1]
            return {"host": text.rstrip(".").ljust(size, "b")}
        case "path":
            return {"path": "/orders/" + "x" * (size - len("/orders/"))}
        case _:
            return {"role": "r" * size}


def _wide(name: str, size: int) -> dict[str, Any]:
    """Return a request with a text of this even length in bytes, of letters that have two."""
    return {name: "/" * (name == "path") + "é" * ((size - (name == "path")) // 2)}


def _refused(what: str, text: str, end: int) -> dict[str, Any]:
    """Return a request without a valid credential that has a text, and ends in a number."""
    if what == "path":
        return {"token": "", "path": f"/{text}/x.{end}"}
    return {"token": f"{b64url((_NESTED + text).encode())}.e30.{end}000"}


@check("policy.hold.text-limits", "TEXT-LIMIT-001", features={"oidc"})
def text_limits(target: Target) -> None:
    """Each text is judged up to its limit, and one byte more is text_too_long.

    The last length that is judged, the first that is refused, and a very long one; the length counts octets,
    of whatever letters. The work for a path without a credential, and for a token's header, grows no faster
    than its length.
    """
    with bench(target, "orders") as here:
        token = here.token()
        too_long = refused("text_too_long", status=400)
        for name, limit in _LIMITS.items():
            seen = here.ask(token, **_of_length(name, limit))
            if seen.reason == "text_too_long":
                raise here.failed(f"a {name} of {limit} bytes is refused as too long", seen)
            for size in (limit + 1, 9000):
                here.expect(f"a {name} of {size} bytes", token, too_long, **_of_length(name, size))
                here.expect(f"a {name} of {size} bytes, no token", "", too_long, **_of_length(name, size))
            wide = _wide(name, limit + 2)
            here.expect(f"a {name} of {limit + 2} bytes, two a letter", token, too_long, **wide)
        for what, longest, run in _RUNS:
            none, short, long = (
                # Each ends otherwise, because an agent may remember it, or do the work behind its answer.
                _times([partial(here.ask, **_refused(what, run * times, end)) for end in range(_FEW)])[1]
                for times in (0, longest // _LONGER_BY // len(run), longest // len(run))
            )
            if long - short > max(2 * _LONGER_BY * (short - none), here.seconds(_PROMPT)):
                took = f"{short * 1e3:.1f} ms, with {_LONGER_BY} times the length {long * 1e3:.1f} ms"
                raise here.failed(f"the refusal of a {what} of {run!r} takes {took}")


def _times(asks: Iterable[Callable[[], object]]) -> list[float]:
    """Ask in turn, and return the seconds that each took, the least first."""
    took = []
    for ask in asks:
        began = time.monotonic()
        ask()
        took.append(time.monotonic() - began)
    return sorted(took)


@check("policy.hold.hostile-texts", "TEXT-LIMIT-002", features={"oidc"})
def hostile_texts(target: Target) -> None:
    """While others send the longest texts, a good client is served as before.

    The worst texts known, without a credential: token-like runs, deep paths, escapes, long names.
    """
    worst: list[dict[str, Any]] = [
        {"path": "/" + "eyJ" * 1300},
        {"path": "/" + "/".join(["a"] * 2000)},
        {"path": "/" + "%41" * 1300},
        {"host": ".".join(["a"] * 130)},
        _of_length("role", 640),
        {"path": "/" + "eyJ" * 4000},
        _of_length("host", 9000),
    ]
    with bench(target, "orders", "policy.hold.hostile-texts", own=True) as here:
        token = here.token(exp="+15m")
        here.expect("the first", token, ALLOWED)
        good = partial(here.expect, "a good client", token, ALLOWED)
        alone = _times([good] * _ROUNDS)[-2]

        def flood(stranger: Bench, ended: threading.Event) -> None:
            while not ended.is_set():
                for request in worst:
                    stranger.ask("", with_reason=False, **request)

        with beside(here, flood, 2):
            slowest = _times([good] * _ROUNDS)[-2]
        bound = max(_MULTIPLE * alone, _FLOOR * math.ceil(target.scale))
        if slowest > bound:
            raise here.failed(
                f"the slowest good answers took {alone * 1e3:.1f} ms alone, "
                f"{slowest * 1e3:.1f} ms beside hostile texts"
            )
