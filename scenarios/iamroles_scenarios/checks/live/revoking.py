"""What ends a stream before its time: a policy, a key, a revocation; and what outlives each of them."""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from iamroles_scenarios.checks.live.expiry import AFTER, end, opened
from iamroles_scenarios.checks.live.stream import StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import Bench, bench, refused
from iamroles_scenarios.engine.target import Target

WITHIN = 5.0
"""Seconds, times the scale, in which a change must have reached a stream. A benchmark measures the second."""
SHAPES = (
    StreamShape("websocket"),
    StreamShape("websocket", busy=False),
    StreamShape("events"),
    StreamShape("download", busy=False),
    StreamShape("upload"),
)


class _People:
    """Streams of a reader that shall end, and of a writer that shall go on."""

    def __init__(self, here: Bench, stack: ExitStack, **recipe: Any) -> None:  # noqa: ANN401 - a token's recipe
        self.here = here
        self.token = here.token(exp="+15m", sub="alice", claims={"jti": "alice-1"}, **recipe)
        self.other = here.token(exp="+15m", sub="bob", claims={"jti": "bob-1"}, roles=["writer"])
        self.going = [opened(here, stack, shape, self.token) for shape in SHAPES]
        self.staying = [opened(here, stack, shape, self.other, "/live/writer") for shape in SHAPES]

    def judge(self, what: str) -> None:
        """The reader's streams must end, the writer's go on."""
        due = time.time() + self.here.seconds(WITHIN)
        for stream in self.going:
            if not stream.until(due):
                raise self.here.failed(f"{stream.shape}: still open {WITHIN:g} s after {what}")
        time.sleep(AFTER)  # what cuts too much has had its time
        for stream in self.staying:
            if not (stream.lives() and (not stream.shape.busy or stream.moves(self.here.seconds(WITHIN)))):
                raise self.here.failed(f"{stream.shape} of another, still permitted, ended at {what}")

    def nothing_ended(self, what: str) -> None:
        time.sleep(2 * AFTER)
        for stream in (*self.going, *self.staying):
            if not stream.lives():
                raise self.here.failed(f"{stream.shape}: ended at {what}, though it is still permitted")


def revoke(here: Bench, **revocation: Any) -> None:  # noqa: ANN401 - a revocation's members
    """Write the world's file of revocations; nothing given: revoke nothing."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in revocation.items()]
    text = "\n".join(["[[revocations]]", 'id = "now"', *lines, ""]) if revocation else ""
    here.world.agent.put("revocations.toml", text)


@check("live.policy.ends", "LIVE-POLICY-001", "LIVE-KEEP-001", features={"live", "reload"})
def policy(target: Target) -> None:
    """A policy without its grant ends a stream; a policy with it does not.

    First a reload that changes something else, then one that takes the reader's grant away.
    """
    with bench(target, "live", "live.policy", own=True) as here, ExitStack() as stack:
        people = _People(here, stack)
        document = copy.deepcopy(here.loan.policy)
        document["roles"].append({"name": "more", "arn": "arn:aws:iam::111111111111:role/more"})
        here.reload(document)
        people.nothing_ended("a reload that changes nothing for them")
        document["grants"] = [grant for grant in document["grants"] if grant["id"] != "L1"]
        here.reload(document)
        people.judge("the reload that took its grant away")


@check("live.key.ends", "LIVE-KEY-001", "LIVE-KEEP-001", features={"live"})
def key(target: Target) -> None:
    """A key that leaves its issuer's set ends the streams that it opened, and no others.

    Another key comes, which ends nothing; then the first one goes.
    """
    with bench(target, "live", "live.key", own=True, keys={"refresh": "1s", "cooldown": "1s"}) as here:
        issuer = here.issuer()
        with ExitStack() as stack:
            first = here.token(exp="+15m")
            going = opened(here, stack, StreamShape("websocket"), first)
            issuer.rotate()
            staying = opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))
            time.sleep(2 * AFTER)
            if not going.lives():
                raise here.failed("a new key beside the old one ended a stream of the old one")
            head = first.partition(".")[0]
            issuer.remove(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])
            if not going.until(time.time() + here.seconds(WITHIN)):
                raise here.failed(f"still open {WITHIN:g} s after its key was removed")
            if not staying.moves(here.seconds(WITHIN)):
                raise here.failed("the stream of a key that is still in the set was ended as well")


@check("live.key.replaced", "LIVE-KEY-002", "LIVE-KEEP-001", features={"live"})
def replaced(target: Target) -> None:
    """A key that is replaced under its own key id ends the streams that the first one opened.

    The issuer publishes another key under the kid of the first one, beside one that stays.
    """
    with bench(target, "live", "live.replaced", own=True, keys={"refresh": "1s", "cooldown": "1s"}) as here:
        issuer = here.issuer()
        with ExitStack() as stack:
            first = issuer.keys[0]
            going = [opened(here, stack, shape, here.token(exp="+15m")) for shape in SHAPES[:3]]
            second = issuer.rotate()
            staying = opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))
            other = issuer.add_key(publish=False, sign=False, kid=first.kid)
            issuer.publish(second.public_jwk(), other.public_jwk(), replace=True)
            due = time.time() + here.seconds(WITHIN)
            for stream in going:
                if not stream.until(due):
                    raise here.failed(f"{stream.shape}: still open {WITHIN:g} s after its key was replaced")
            if not staying.moves(here.seconds(WITHIN)):
                raise here.failed("the stream of a key that is still in the set was ended as well")


@check("live.key.restart", "LIVE-KEY-001", "LIVE-KEEP-001", features={"live"})
def away(target: Target) -> None:
    """A key that leaves its issuer's set while the agent is away ends the streams that it opened.

    The agent is killed, the key replaced, and the agent started anew.
    """
    with bench(target, "live", "live.away", own=True) as here, ExitStack() as stack:
        issuer = here.issuer()
        first = issuer.keys[0]
        going = [opened(here, stack, shape, here.token(exp="+15m")) for shape in SHAPES[:3]]
        issuer.rotate()
        staying = opened(here, stack, StreamShape("websocket"), here.token(exp="+15m"))
        here.world.agent.kill()
        issuer.remove(first.kid)
        here.world.agent.start()
        here.world.haproxy.wait_agent(up=True, within=here.seconds(15.0))
        due = time.time() + here.seconds(WITHIN)
        for stream in going:
            if not stream.until(due):
                raise here.failed(f"{stream.shape}: still open {WITHIN:g} s after the agent came back")
        if not staying.moves(here.seconds(WITHIN)):
            raise here.failed("the stream of a key that is still in the set was ended as well")


@check("live.audience.ends", "LIVE-POLICY-002", "LIVE-KEEP-001", features={"live", "reload"})
def audience(target: Target) -> None:
    """A policy that takes an audience from its issuer ends the streams of that audience, and no others.

    An audience comes, which ends nothing; then the first one goes, and who has both stays.
    """
    with bench(target, "live", "live.audience", own=True) as here, ExitStack() as stack:
        going = [opened(here, stack, shape, here.token(exp="+15m")) for shape in SHAPES[:3]]
        both = here.token(exp="+15m", aud=["edge", "more"])
        staying = [opened(here, stack, shape, both) for shape in SHAPES[:3]]
        document = copy.deepcopy(here.loan.policy)
        document["issuers"][0]["audiences"] = ["edge", "more"]
        here.reload(document)
        time.sleep(2 * AFTER)
        for stream in (*going, *staying):
            if not stream.lives():
                raise here.failed(f"{stream.shape}: ended at a reload that adds an audience")
        document["issuers"][0]["audiences"] = ["more"]
        here.reload(document)
        due = time.time() + here.seconds(WITHIN)
        for stream in going:
            if not stream.until(due):
                raise here.failed(
                    f"{stream.shape}: still open {WITHIN:g} s after its audience was taken away"
                )
        time.sleep(AFTER)
        for stream in staying:
            if not (stream.lives() and (not stream.shape.busy or stream.moves(here.seconds(WITHIN)))):
                raise here.failed(f"{stream.shape}: ended, though one of its audiences is still accepted")


_KINDS: dict[str, dict[str, Any]] = {
    "role": {"roles": ["reader"]},
    "principal": {"principals": ["alice"]},
    "session": {"sessions": ["alice-1"]},
    "issued": {"roles": ["reader", "writer"], "principals": ["alice"], "issued_before": "later"},
}


def _revoked(
    target: Target, owner: str, kind: str, between: Callable[[Bench], None] = lambda _: None
) -> None:
    members = dict(_KINDS[kind])
    if "issued_before" in members:
        members["issued_before"] = int(time.time()) + 60
    live = {"revocations": "revocations.toml"}
    with bench(target, "live", owner, own=True, live=live) as here, ExitStack() as stack:
        revoke(here)
        people = _People(here, stack)
        between(here)
        revoke(here, reason="stolen", **members)
        people.judge(f"the revocation of its {kind}")
        here.expect(
            "a request of the revoked",
            people.token,
            refused("credential_revoked"),
            within=WITHIN,
            path="/plain/a",
        )
        here.expect("a request of another", people.other, Expectation(backend="plain"), path="/plain/a")
        revoke(here)
        here.expect(
            "a request after the undo",
            people.token,
            Expectation(backend="plain"),
            within=WITHIN,
            path="/plain/a",
        )


for _kind in _KINDS:

    @check(
        f"live.revoke.{_kind}",
        "LIVE-REVOKE-001",
        "LIVE-REVOKE-002",
        "LIVE-KEEP-001",
        features={"live"},
        title=f"A revocation by {_kind} ends its streams, refuses its requests, and leaves others alone",
    )
    def _by_kind(target: Target, kind: str = _kind) -> None:
        """Streams of two people; the revocation is about one of them."""
        _revoked(target, f"live.revoke.{kind}", kind)


@check("live.reload.revoked", "LIVE-RELOAD-001", features={"live"})
def reloaded(target: Target) -> None:
    """Streams of before a reload of the proxy end with a revocation and with their token.

    The streams are in the old worker when it is revoked.
    """

    def reload(here: Bench) -> None:
        with ExitStack() as stack:
            short = [opened(here, stack, shape, here.token(exp=end(here))) for shape in SHAPES]
            here.world.haproxy.reload()
            for stream in short:
                if not stream.until(stream.expires + here.seconds(AFTER)):
                    raise here.failed(f"{stream.shape}: open {AFTER:g} s after its token, over a reload")

    _revoked(target, "live.reload", "role", reload)


@check("live.restart.revoked", "LIVE-RESTART-001", features={"live"})
def restarted(target: Target) -> None:
    """Streams of before the agent was killed end with a revocation.

    The agent is killed and started anew while they are open.
    """

    def restart(here: Bench) -> None:
        here.world.agent.kill()
        here.world.agent.start()
        here.world.haproxy.wait_agent(up=True, within=here.seconds(15.0))

    _revoked(target, "live.restart", "principal", restart)
