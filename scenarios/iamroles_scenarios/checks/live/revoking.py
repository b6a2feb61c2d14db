"""Policies, keys and revocations that end streams before their time, and streams that outlive them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from iamroles_scenarios.base.errors import TooSlow, Untestable
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.derived.key_sets import until_right
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.checks.live import fixture
from iamroles_scenarios.checks.live.fixture import AFTER, IDLE_SOCKET, SHAPES, SOCKET, WITHIN, live_bench
from iamroles_scenarios.checks.live.generated import hash_of
from iamroles_scenarios.checks.live.stream import StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.declarations.tables import ARN
from iamroles_scenarios.engine.answers import ALLOW
from iamroles_scenarios.engine.bench import EDGE, SpopQuestion, refused
from iamroles_scenarios.engine.key_sets import keeping
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import part

_PLAIN: dict[str, Any] = {"path": "/plain/a"}
_STS = "live-sts"
_LONG = 3000
"""Letters of a path that an agent may be unable to keep with its stream."""
_SOONER = 9.0
"""Seconds, times the scale: longer than an agent may look at what is new."""
_PATIENT = {"IAM_TIMEOUT_PROCESSING": "20s"}
_NEAR = 1.4
"""Seconds, times the scale: an agent has planned an end so near, and it is later than a cut may be."""
_FAST_KEYS = {"refresh": "1s", "cooldown": "1s"}
_KEYS = 1.0 + AFTER
"""Seconds, times the scale: the agent learns of a key within `refresh`."""


def _known(here: fixture.LiveBench, **recipe: Any) -> str:  # noqa: ANN401 - a token's recipe
    """Mint a token, and wait until each worker has its key: an agent may ask once in a cooldown (6.4)."""
    token = here.token(exp="+15m", **recipe)
    until_right(here, [SpopQuestion("a first use", iam_check(token, **_PLAIN), ALLOW)])
    return token


@check("live.policy.ends", "LIVE-POLICY-001", "LIVE-KEEP-001", features={"live", "reload"})
def policy(target: Target) -> None:
    """A policy without its grant ends a stream; a policy with it does not.

    First a reload that changes something else, then a reload that takes the reader's grant away: also under a
    request with a long path.
    """
    with live_bench(target, "live.policy", own=True) as here:
        going, staying = here.two_people(SHAPES)
        document = copy.deepcopy(here.loan.policy)
        document["roles"].append({"name": "more", "arn": "arn:aws:iam::111111111111:role/more"})
        staying.append(here.open(IDLE_SOCKET, staying[0].token, f"/live/writer/{'x' * fixture.USUAL}"))
        here.reload(document)
        here.must_last([*going, *staying], "a reload that changes nothing for it", 2 * AFTER)
        going.append(here.open(IDLE_SOCKET, going[0].token, f"/live/reader/{'x' * _LONG}"))
        document["grants"] = [grant for grant in document["grants"] if grant["id"] != "L1"]
        here.reload(document)
        here.must_end(going, "the reload that took its grant away")
        here.must_last(staying, "the reload that took another's grant away")


@check("live.change.under-way", "LIVE-CHANGE-001", features={"live", "reload"})
def under_way(target: Target) -> None:
    """A stream whose verdict was on its way to the proxy when a change came ends by that change.

    A relay holds verdicts for a second, while one person is revoked and another loses the grant.
    """
    with live_bench(target, "live.under-way", revoking=True, relayed=True, settings=_PATIENT) as here:
        alice, bob = here.token(exp="+15m", sub="alice"), here.token(exp="+15m", sub="bob", roles=["writer"])
        here.frames.hold()
        began = time.monotonic()
        late = [here.begin(shape, alice) for shape in fixture.FEW] + [here.begin(SOCKET, bob, "/live/writer")]
        if not here.frames.wait_held(len(late), here.seconds(WITHIN)):
            raise Untestable("the agent does not answer all these questions side by side")
        here.revoke(principals=["alice"])
        grants = [grant for grant in here.loan.policy["grants"] if grant["id"] != "L2"]
        here.must_reload({**here.loan.policy, "grants": grants}, "without the writer's grant")
        rest(here.stretched(AFTER))
        here.frames.release()
        here.must_end(late, "its verdict, after a change that no longer permits it")
        gave_up = time.monotonic() - began > here.world.haproxy.processing
        if gave_up and any(stream.status in (503, 504) for stream in late):
            raise TooSlow("the proxy waited no longer for the verdicts")


@check("live.policy.sooner", "LIVE-POLICY-005", "LIVE-KEEP-001", features={"live", "reload"})
def sooner(target: Target) -> None:
    """A policy that ends access sooner ends streams at that moment, and not before.

    The reader's role gets a shorter lifetime. Requests that wait for their answer have begun, too.
    """
    with live_bench(target, "live.sooner", own=True) as here:
        begin = int(time.time()) - 120
        token = here.token(exp="+15m", iat=begin)
        going = here.open_all((*SHAPES, StreamShape("interim")), token)
        staying = here.open(SOCKET, here.token(exp="+15m", iat=begin, roles=["writer"]), "/live/writer")
        document, end = copy.deepcopy(here.loan.policy), here.end(_SOONER)
        document["roles"][0]["max_lifetime"] = f"{end - begin}s"
        here.must_reload(document, "it ends access sooner")
        here.in_time(end - 1, "a reload before the end that it brings")
        for stream in going:
            here.must_end_at(stream, end, "the end of its role's lifetime", exact=False)
        here.must_last([staying], "the end of another role's lifetime", 0.0)


@check("live.key.ends", "LIVE-KEY-001", "LIVE-KEEP-001", features={"live"})
def key(target: Target) -> None:
    """A key that leaves its issuer's set ends the streams that it opened, and no others.

    Another key comes, which ends nothing; then the first one goes. Its token has many audiences, and each
    worker knows it before the stream begins.
    """
    with live_bench(target, "live.key", own=True, keys=_FAST_KEYS) as here, here.asking():
        issuer = here.issuer()
        first = _known(here, aud=fixture.AUDIENCES)
        going = here.open(SOCKET, first)
        issuer.rotate()
        staying = here.open(SOCKET, _known(here))
        here.must_last([going], "a new key beside its own", 2 * AFTER)
        issuer.remove(part(first, 0)["kid"])
        here.must_end([going], "its key was removed", _KEYS)
        here.must_last([staying], "the removal of another's key", 0.0)


@check("live.key.replaced", "LIVE-KEY-002", "LIVE-KEEP-001", features={"live"})
def replaced(target: Target) -> None:
    """A key that is replaced under its own key id ends the streams that the first one opened.

    The issuer publishes another key under the kid of the first one, and the third under another kid; the
    second stays, without the `alg` and `use` that it had.
    """
    with live_bench(target, "live.replaced", own=True, keys=_FAST_KEYS) as here, here.asking():
        issuer = here.issuer()
        first = issuer.keys[0]
        going = here.open_all(fixture.FEW, here.token(exp="+15m"))
        second = issuer.rotate()
        staying = here.open(SOCKET, _known(here))
        third = issuer.rotate()
        going.append(here.open(IDLE_SOCKET, _known(here)))
        other = issuer.add_key(publish=False, sign=False, kid=first.kid)
        renamed = {**third.public_jwk(), "kid": "renamed"}
        bare = {name: text for name, text in second.public_jwk().items() if name not in {"alg", "use"}}
        issuer.publish(bare, other.public_jwk(), renamed, replace=True)
        here.must_end(going, "its key was replaced or renamed", _KEYS)
        here.must_last([staying], "the replacement of another's key", 0.0)


@check("live.key.restart", "LIVE-KEY-001", "LIVE-KEEP-001", features={"live"})
def away(target: Target) -> None:
    """A key that leaves its issuer's set while the agent is away ends the streams that it opened.

    The agent is killed, the key replaced, and the agent started again. The token is for several audiences.
    Then it is stopped, which ends nothing, and the issuer is down until it is there again.
    """
    with live_bench(target, "live.away", own=True, keys=_FAST_KEYS) as here, here.asking():
        issuer = here.issuer()
        first = issuer.keys[0]
        going = here.open_all(fixture.FEW, here.token(exp="+15m", aud=fixture.AUDIENCES))
        issuer.rotate()
        staying = here.open(SOCKET, _known(here))
        here.world.agent.kill()
        issuer.remove(first.kid)
        here.start_agent()
        here.must_end(going, "the agent came back", WITHIN)
        here.must_last([staying], "the return of the agent", 0.0)
        here.world.agent.stop()
        here.must_last([staying], "the stop of the agent", 0.0)
        issuer.rotate(overlap=False)
        issuer.fault("*", "status", status=503)
        here.start_agent()
        issuer.clear()
        here.must_end([staying], "the agent came back, and then the issuer", WITHIN)


def _issuer(name: str) -> dict[str, Any]:
    about = {"insecure_http": True, "audiences": ["edge"], "algorithms": ["RS256", "ES256"]}
    return {"name": name, "issuer": f"{{idp}}/{name}", **about}


_PREFERRING: dict[str, Any] = {"roles": ["writer", "reader"], "claims": {"preferred": f"{ARN}reader"}}
_STRICTER: dict[str, dict[str, Any]] = {
    "accounts": {"accounts": ["222222222222"]},
    "max_lifetime": {"max_lifetime": "60s"},
    "types": {"types": ["at+jwt"]},
    "profile": {"profile": "rfc9068"},
    "scope_claim": {"scope_claim": "absent"},
    "roles_claim": {"roles_claim": "absent"},
    "principal_claim": {"principal_claim": "absent"},
    "session_claim": {"session_claim": "roles"},
    "itself": {},
}
"""Settings by which an issuer's tokens are accepted no longer, each for its own issuer; `itself` goes."""


@check("live.issuer.ends", "LIVE-POLICY-003", "LIVE-KEEP-001", features={"live", "reload"})
def stricter(target: Target) -> None:
    """A policy by which an issuer's tokens would be refused ends their streams, whichever setting says so.

    One issuer for each setting. The first reload lets more in, and ends nothing.
    """
    issuers = [{"name": "corp", "preferred_role_claim": "preferred"}, *map(_issuer, _STRICTER)]
    with live_bench(target, "live.issuer", own=True, issuers=issuers) as here:
        staying = [here.open(IDLE_SOCKET, here.token(exp="+15m", **recipe)) for recipe in ({}, _PREFERRING)]
        going = {name: here.open(IDLE_SOCKET, here.token(name, exp="+15m")) for name in _STRICTER}
        document = copy.deepcopy(here.loan.policy)
        for entry in document["issuers"]:
            entry |= {"max_lifetime": "2h", "accounts": ["111111111111", "222222222222"]}
        here.must_reload(document, "it lets more in")
        here.must_last([*staying, *going.values()], "a reload that lets more in", 2 * AFTER)
        for entry, setting in zip(document["issuers"][1:], _STRICTER.values(), strict=True):
            entry.update(setting)
        document["issuers"] = [entry for entry in document["issuers"] if entry["name"] != "itself"]
        here.must_reload(document, "it lets less in")
        for name, stream in going.items():
            here.must_end([stream], f"a reload by which `{name}` refuses its token")
            here.expect(name, stream.token, Expectation(allow=False), path="/plain/a")
        here.must_last(staying, "a reload that is about other issuers")


_OTHERS = [
    {"id": f"other-{number}", "principals": [f"guest-{number}"], "reason": "x" * 330}
    for number in range(9999)
]
"""Revocations of strangers, and one less than the 10,000 of 9.6, nearly 4 MiB: read for a while."""
_NAMES = 1000
"""Principals of a revocation."""
_READS = 0.15
"""Seconds, times the scale, after which an agent may read a file, and not be done with it."""
_KINDS: dict[str, dict[str, Any]] = {
    "role": {"roles": ["reader"]},
    "principal": {"principals": ["alice"]},
    "session": {"sessions": ["alice-1"]},
    "issued": {"roles": ["reader", "writer"], "principals": ["alice"]},  # and `issued_before`
}


def _revoked(
    target: Target, owner: str, kind: str, between: Callable[[fixture.LiveBench], None] = lambda _: None
) -> None:
    members = dict(_KINDS[kind])
    # One kind with a single worker, which must do what one of two may leave to the other.
    alone = kind == "session" and not target.lacks(["workers"])
    tables: dict[str, Any] = {"agent": keeping(target.stage) | {"workers": 1}} if alone else {}
    with live_bench(target, owner, revoking=True, mounted=kind == "issued", **tables) as here:
        going, staying = here.two_people(SHAPES)
        between(here)
        if kind == "principal":  # whose end is near
            soon = here.open(IDLE_SOCKET, here.token(exp=here.end(2 * _NEAR), sub="alice"))
            soon.until(soon.expires - here.stretched(_NEAR))
            going.append(soon)
        if kind == "issued":
            members["issued_before"] = here.now() + 60  # later than the tokens, however long the start took
        here.revoke(reason="stolen,\nsays Zoë", **members)
        here.must_end(going, f"the revocation of its {kind}")
        here.must_last(staying, f"the revocation of another's {kind}")
        alice, bob, passes = going[0].token, staying[0].token, Expectation(backend="plain")
        how = _PLAIN
        here.expect("a request of the revoked", alice, refused("credential_revoked"), within=WITHIN, **how)
        here.expect("a request of another", bob, passes, **how)
        if not target.lacks(["reload"]):
            roles = [*here.loan.policy["roles"], {"name": "more", "arn": f"{ARN}more"}]
            here.must_reload({**here.loan.policy, "roles": roles}, "with a role more")
            here.expect("a request after a reload", alice, refused("credential_revoked"), **how)
            if kind == "role":
                [reader, writer] = here.loan.policy["roles"]
                roles = [{**reader, "arn": writer["arn"]}, {**writer, "arn": reader["arn"]}]
                here.must_reload({**here.loan.policy, "roles": roles}, "its name is another role's")
                here.expect("a request of the name's new role", bob, refused("credential_revoked"), **how)
                here.expect("a request of its former role", alice, passes, **how)
        here.revoke()
        here.expect("a request after the undo", alice, passes, within=WITHIN, **how)
        if kind == "session":
            here.revoke_all(_OTHERS[::3])
            rest(_READS * target.scale)
            here.revoke(**members)
            gone = refused("credential_revoked")
            here.expect("a request after two files in short order", alice, gone, within=WITHIN, **how)
            names = [*(f"guest-{number}" for number in range(_NAMES)), "bob"]
            here.revoke_all([*_OTHERS, {"id": "bob", "principals": names}])
            here.expect("a request that a long file names last", bob, gone, within=WITHIN, **how)
            here.expect("a request that a long file does not name", alice, passes, **how)
            here.restart_agent()
            here.expect("a request that a long file names, after a death", bob, gone, within=WITHIN, **how)


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
        """Streams of two people; the revocation is about one of them.

        A reload does not lift it. That of a session comes once more, while the agent may read another file.
        Then a long file is about the other person, also after the agent's death. A link leads to the file of
        `issued`.
        """
        _revoked(target, f"live.revoke.{kind}", kind)


@check("live.revoke.sts", "LIVE-REVOKE-004", features={"live", "oidc", "sts"})
def signed_since(target: Target) -> None:
    """A revocation with `issued_before` refuses pre-signed requests that were signed later, too.

    The caller chooses the date; a token that was issued later passes. Then a request is revoked by its hash,
    its endpoint, its principal and its session.
    """
    sts = {"name": "cloud", "endpoint": "{sts}", "binding_value": EDGE, "insecure_http": True}
    hosts = [f"{_STS}{{suffix}}.sts.example"]
    with live_bench(target, _STS, revoking=True, sts=[{**sts, "hosts": hosts}]) as here:
        here.sts_host = f"{_STS}{here.loan.suffix}.sts.example"
        keys, how = here.session(), _PLAIN
        passes = Expectation(backend="plain")
        here.expect("a request before it", here.credential(keys), passes, **how)
        here.revoke(roles=["reader"], issued_before=0)
        gone = refused("credential_revoked")
        here.expect("what was signed later", here.credential(keys, expires=77), gone, within=WITHIN, **how)
        here.expect("a token that was issued later", here.token(), passes, **how)
        mine, other = here.credential(keys), here.credential(keys, expires=78)
        here.revoke(credentials=[hash_of(mine)])
        here.expect("another request of the same keys", other, passes, within=WITHIN, **how)
        here.expect("a request that is revoked by its signature", mine, gone, within=WITHIN, **how)
        whose = {"issuers": "cloud", "principals": keys.arn, "sessions": keys.arn.rpartition("/")[2]}
        for kind, name in whose.items():
            here.revoke()
            here.expect(f"a request before its {kind} are revoked", mine, passes, within=WITHIN, **how)
            here.revoke_all([{"id": "now", kind: [name]}])
            here.expect(f"a request that is revoked by {kind}", mine, gone, within=WITHIN, **how)
            here.expect("a token beside it", here.token(), passes, **how)


_VAST = ('"9999-12-31T23:59:60Z"', "9" * 5000)
"""Moments beyond the year 9999 and 64 bits."""


@check("live.revoke.file", "LIVE-REVOKE-005", features={"live"})
def faulty(target: Target) -> None:
    """A file of revocations that is empty or half written lifts no revocation.

    The next sound file counts again, also after files with moments that an agent may be unable to read.
    """
    with live_bench(target, "live.file", revoking=True) as here:
        token, how = here.token(exp="+15m", sub="alice"), _PLAIN
        here.revoke(principals=["alice"])
        gone = refused("credential_revoked")
        here.expect("a request of the revoked", token, gone, within=WITHIN, **how)
        for text in ("", '[[revocations]]\nid = "now"\nprincip'):
            here.world.agent.put("revocations.toml", text)
            rest(here.stretched(2 * AFTER))
            here.expect(f"a request after the file became {text!r}", token, gone, **how)
        for moment in _VAST:
            text = f'[[revocations]]\nid = "now"\nprincipals = ["bob"]\nissued_before = {moment}\n'
            here.world.agent.put("revocations.toml", text)
            rest(here.stretched(2 * AFTER))
        here.revoke()
        here.expect("a request after the undo", token, Expectation(backend="plain"), within=WITHIN, **how)


@check("live.reload.revoked", "LIVE-RELOAD-001", features={"live"})
def reloaded(target: Target) -> None:
    """Streams from before a reload of the proxy end with a revocation and with their token.

    The streams are in the oldest of three workers when it is revoked.
    """

    def reload(here: fixture.LiveBench) -> None:
        short = here.open_short(SHAPES)
        here.world.haproxy.reload()
        here.open(IDLE_SOCKET, here.token(exp="+15m", roles=["writer"]), "/live/writer")  # its worker stays
        here.world.haproxy.reload()
        here.must_expire(short, "its token's end, over two reloads")

    _revoked(target, "live.reload", "role", reload)


@check("live.restart.revoked", "LIVE-RESTART-001", features={"live"})
def restarted(target: Target) -> None:
    """Streams from before the agent was killed end with a revocation.

    The agent is killed and started again while they are open.
    """

    _revoked(target, "live.restart", "principal", fixture.LiveBench.restart_agent)
