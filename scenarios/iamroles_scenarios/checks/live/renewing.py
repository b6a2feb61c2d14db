"""Renewal: a fresh credential prolongs streams if the policy says so, up to its own expiry."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from threading import Event
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.live import fixture
from iamroles_scenarios.checks.live.fixture import AFTER, EVERY, FEW, UPLOAD, LiveBench, live_bench
from iamroles_scenarios.checks.live.stream import Stream, StreamShape, expiry_of
from iamroles_scenarios.checks.live.unlisted import PREAMBLES
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.engine.bench import EARLY, Bench, beside
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import part

FEATURES = {"live", "renew"}
WORLD = "live-renew"
RENEWING, ENDING = "/renewing", "/ending"
_LIFE, _LATE = 5.0, 12.0
"""Seconds, times the scale: of most streams, and of those that are prolonged long before their end."""
_MANY = [f"{ARN}writer", *(f"{ARN}{'x' * 60}{number}" for number in range(30))]
"""Roles of a credential that is too long for a ticket (3.1)."""
_AHEAD = 1.0
"""Seconds before a stream's end by which what prolongs it must have been seen (9.8)."""
_MOMENT = 0.6
"""Seconds, times the scale, that the judge has to ask in the last moment."""
SHAPES = (*FEW, UPLOAD)
_OTHERS, _TIMES, _BESIDE, _PAUSE = ("mia", "ned", "oda"), 5, 1.5, 0.25
"""People whose streams are prolonged beside a reload, how often, and seconds: on each side, between two."""


def token(here: LiveBench, sub: str, **recipe: Any) -> str:  # noqa: ANN401 - a token's recipe
    """Mint a credential of a person's one session."""
    claims = {"sid": f"session of {sub}", **recipe.pop("claims", {})}
    return here.token(sub=sub, claims=claims, **recipe)


def ask(here: LiveBench, streams: Iterable[Stream], fresh: str, path: str = RENEWING) -> None:
    """Ask with a fresh credential, which must be allowed, in time for these streams."""
    what = "a question with a fresh credential"
    try:
        here.expect(what, fresh, Expectation(backend=path[1:]), path=path)
    except CheckFailed:
        here.in_time(expiry_of(fresh), what)
        raise
    for stream in streams:
        here.in_time(stream.expires - _AHEAD, what)


def begun(
    here: LiveBench,
    sub: str,
    shapes: Iterable[StreamShape],
    **recipe: Any,  # noqa: ANN401 - a token's recipe
) -> list[Stream]:
    """Open streams of a person whose credentials end together: a later one would prolong the others."""
    end = here.end(_LIFE)
    return [here.open(shape, token(here, sub, exp=end, **recipe), RENEWING) for shape in shapes]


def outlive(here: LiveBench, streams: Iterable[Stream], until: float, what: str) -> None:
    """Hold streams to be open after their first credential's end, and to move if they are busy.

    The judge must look before the end of the credential that prolonged them.
    """
    for stream in streams:
        if stream.until(stream.expires + here.stretched(AFTER)):
            here.in_time(until, f"{stream} after its first credential's end")
            raise here.failed(
                f"{stream}: ended {stream.ended - stream.expires:+.2f} s from its first credential's end "
                f"although {what}"
            )
        if stream.shape.busy and not stream.moves(here.seconds(AFTER)):
            here.in_time(until, f"what moves on {stream} after its first credential's end")
            raise here.failed(f"{stream}: open, but nothing passes although {what}")


def _ask_each(here: Bench, tokens: Iterable[str], ended: Event) -> None:
    """Ask with one fresh credential after another, whatever the answers."""
    for fresh in tokens:
        if ended.wait(_PAUSE):
            return
        here.ask(fresh, path=RENEWING)


@check("live.renew.prolongs", "LIVE-RENEW-001", "LIVE-RENEW-005", features=FEATURES)
def prolongs(target: Target) -> None:
    """A fresh credential prolongs streams up to its own expiry; a shorter one changes nothing.

    One question each with a longer and with a shorter credential; for some more of them, and for some long
    before their end. Elsewhere a stream of many roles lasts until its token's end.
    """
    corp = {"name": "corp", "preferred_role_claim": "preferred"}
    with live_bench(target, "live.renew", WORLD, issuers=[corp]) as here:
        early = [here.open(shape, token(here, "eva", exp=here.end(_LATE)), RENEWING) for shape in FEW]
        ask(here, early, token(here, "eva", exp="+15m"))
        until = here.end(10)
        longer, twice = begun(here, "ann", EVERY), begun(here, "dan", FEW)
        same = begun(here, "ben", SHAPES)
        ask(here, same, token(here, "ben", exp=here.end(1)))
        for sub, end in (("ann", until - 2), ("ann", until), ("dan", until)):
            ask(here, longer, token(here, sub, exp=end))
        here.must_expire(same, "its token's end, with a shorter one seen since")
        outlive(here, longer, until, "a fresh credential was seen in time")
        ask(here, (), token(here, "dan", exp=(last := here.end(6))))
        here.in_time(until - _AHEAD, "the last credential")
        for stream in longer:
            here.must_end_at(stream, until, "the end of the credential that prolonged it")
        # At a change an agent may end it (9.13): the last is long ago.
        many = {"roles": _MANY, "claims": {"preferred": _MANY[0]}}
        long = here.open(fixture.IDLE_SOCKET, token(here, "fox", exp=here.end(), **many), ENDING)
        for stream in twice:
            here.must_end_at(stream, last, "the end of the last credential that prolonged it")
        here.must_expire([long], "its token's end")
        outlive(here, early, math.inf, "a fresh credential was seen long before")


@check("live.renew.address", "LIVE-RENEW-001", "LIVE-ADDRESS-001", features=FEATURES)
def proxied(target: Target) -> None:
    """Behind a load balancer that speaks the PROXY protocol a fresh credential prolongs as everywhere.

    Clients by every form of an address; the fresh credential opens another stream.
    """
    with live_bench(target, "live.renew", WORLD, settings={"IAM_BIND": "accept-proxy"}) as here:

        def opened(exp: int | str) -> list[Stream]:
            credentials = {form: token(here, form, exp=exp) for form in PREAMBLES}
            return [
                here.open(fixture.IDLE_SOCKET, said, RENEWING, PREAMBLES[form])
                for form, said in credentials.items()
            ]

        streams = opened(here.end(_LIFE))
        opened("+15m")
        here.in_time(streams[0].expires - _AHEAD, "questions with fresh credentials")
        outlive(here, streams, math.inf, "a fresh credential was seen in time")


@check("live.renew.elsewhere", "LIVE-RENEW-002", features=FEATURES)
def elsewhere(target: Target) -> None:
    """A backend that does not renew ends its streams with the credential that opened them.

    Fresh credentials are seen there, and in the backend that renews.
    """
    with live_bench(target, "live.renew", WORLD) as here:
        streams = [here.open(shape, token(here, "cat", exp=here.end(_LIFE)), ENDING) for shape in EVERY]
        for path in (ENDING, RENEWING):
            ask(here, streams, token(here, "cat", exp="+15m"), path)
        here.must_expire(streams, "its token's end, where nothing is renewed")


@check("live.renew.revoked", "LIVE-RENEW-004", "LIVE-RENEW-005", features=FEATURES)
def revoked(target: Target) -> None:
    """A revocation of either credential ends a prolonged stream, and prevents renewal.

    One revocation spares what was issued since: of each pair of credentials it is about one alone. Then the
    key of a credential that prolonged a stream leaves its issuer's set.
    """
    with live_bench(target, "live.renew.revoked", WORLD, revoking=True, keys={"refresh": "1s"}) as here:
        bound = int(time.time()) - 30
        old, new = {"iat": "-60s"}, {"iat": "-5s"}

        def pair(sub: str, first: dict[str, str], then: dict[str, str]) -> list[Stream]:
            found = begun(here, sub, SHAPES, **first)
            ask(here, found, token(here, sub, exp="+10m", **then))
            return found

        before, began = pair("fay", new, old), time.time()
        here.revoke(principals=["fay"], issued_before=bound)
        due = time.time() + here.seconds(AFTER)
        here.in_time(min(stream.expires for stream in before) - _AHEAD, "a revocation before a stream's end")
        # An agent that prolonged them at once ends them by the revocation of what prolonged them (9.9).
        others = [stream for stream in before if not stream.until(due) or stream.ended < began]
        here.must_expire(others, "its token's end: what was to prolong it is revoked")
        opening, prolonging, spared = pair("gus", old, new), pair("hal", new, old), pair("ida", new, new)
        keyed = pair("jim", new, {**new, "key": "ES256"})
        every = (*opening, *prolonging, *spared, *keyed)
        outlive(here, every, math.inf, "a fresh credential was seen in time")
        here.revoke(principals=["gus", "hal", "ida"], issued_before=bound)
        here.must_end(opening, "the credential that opened it was revoked")
        here.must_end(prolonging, "the credential that prolonged it was revoked")
        here.must_last([*spared, *keyed], "the revocation of credentials that were issued before its own")
        here.issuer().remove(part(token(here, "jim", key="ES256"), 0)["kid"])
        here.must_end(keyed, "the key of the credential that prolonged it was removed", 1.0 + AFTER)
        here.must_last(spared, "the removal of another's key", 0.0)


@check("live.renew.kept", "LIVE-RENEW-006", "LIVE-RENEW-002", features={*FEATURES, "reload"})
def kept(target: Target) -> None:
    """A prolonged stream outlives a reload of the proxy, and a change of the policy after it.

    The proxy's old worker may forget which credential prolonged it, and the new worker never saw that. It
    came in the last moment that counts, for another stream long before its end, which is after the reload.
    The agent is killed and started, and the policy changes, before the reload too. Streams of others are
    prolonged before, during and after it. Then a policy without renewal, with which the agent starts again;
    and at last the first policy.
    """
    with live_bench(target, "live.renew.kept", WORLD, own=True) as here:
        streams = begun(here, "lou", FEW)
        streams[0].until(streams[0].expires - _AHEAD - here.stretched(_MOMENT))
        ask(here, streams, token(here, "lou", exp="+10m"))
        outlive(here, streams, math.inf, "a fresh credential was seen in time")
        here.restart_agent()
        roles = [*here.loan.policy["roles"], {"name": "more", "arn": f"{ARN}more"}]
        here.must_reload({**here.loan.policy, "roles": roles}, "with a role more")
        here.must_last(streams, "a restart of the agent, and a reload of a policy that permits it")
        streams.append(here.open(FEW[0], token(here, "max", exp=here.end(_LATE)), RENEWING))
        ask(here, streams[-1:], token(here, "max", exp="+10m"))
        others = [
            here.open(fixture.IDLE_SOCKET, token(here, sub, exp=here.end(_LIFE)), RENEWING) for sub in _OTHERS
        ]
        prolonged = (
            token(here, stream_of, exp=int(stream.expires) + more)
            for more in range(1, _TIMES)
            for stream_of, stream in zip(_OTHERS, others, strict=True)
        )
        with beside(here, lambda client, ended: _ask_each(client, prolonged, ended), 1):
            rest(here.stretched(_BESIDE))
            here.world.haproxy.reload()
            rest(here.stretched(_BESIDE))
        here.must_last(streams, "a reload of the proxy", 2 * AFTER)
        here.restart_agent()
        here.must_reload({**here.loan.policy, "groups": []}, "it changes nothing")
        here.must_last(streams, "a reload of the proxy, and of a policy that permits it")
        outlive(here, streams[-1:], math.inf, "a fresh credential was seen long before, and before a reload")
        backends = [{**backend, "renew": False} for backend in here.loan.policy["backends"]]
        here.must_reload(changed := {**here.loan.policy, "backends": backends}, "no backend renews")
        here.world.haproxy.reload(changed)
        last = begun(here, "pam", FEW)
        ask(here, last, token(here, "pam", exp="+10m"))
        here.must_expire(last, "its token's end, after a reload to a backend that does not renew")
        here.restart_agent()
        here.must_reload(here.loan.policy, "a backend renews")
        here.world.haproxy.reload(here.loan.policy)
        ask(here, last := begun(here, "pat", FEW), token(here, "pat", exp="+10m"))
        outlive(here, last, math.inf, "its backend renews since a reload")


@check("live.renew.restarts", "LIVE-RENEW-001", "LIVE-RENEW-006", features=FEATURES)
def over(target: Target) -> None:
    """Renewal reaches streams from before a reload of the proxy, and survives a restart of the agent.

    Reload the proxy, renew, kill the agent and start it again; at last kill it for good.
    """
    with live_bench(target, "live.renew.restarts", WORLD, own=True) as here:
        until = here.end(15)
        streams = begun(here, "jon", SHAPES)
        here.world.haproxy.reload()
        ask(here, streams, token(here, "jon", exp=until))
        outlive(here, streams, until, "a fresh credential was seen after the reload")
        here.restart_agent()
        here.in_time(until, "the restart of the agent")
        for stream in streams:
            here.must_end_at(stream, until, "the end of the credential that prolonged it")
        later = here.end(8)
        [alone] = streams = begun(here, "kim", FEW[:1])
        ask(here, streams, token(here, "kim", exp=later))
        here.world.agent.kill()
        alone.until(later + here.seconds(AFTER))
        # The agent may have renewed it at once.
        due = alone.expires if alone.ended < later - EARLY else later
        here.must_end_at(alone, due, "its token's end, or that of the one seen since, without an agent")
