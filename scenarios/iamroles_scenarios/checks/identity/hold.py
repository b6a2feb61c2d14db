"""Strangers and their servers: a key server that drips, forged STS credentials, one kid for two keys."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import TooSlow
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.checks.identity.caller import WORLD
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine import bench as benches
from iamroles_scenarios.engine.answers import ALLOW, REFUSE
from iamroles_scenarios.engine.bench import ALLOWED, Bench, bench, beside, own_bench, own_suffix, refused
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.asker import Asker

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import SessionKeys

_RECOVERY = 15.0
"""Seconds, times the scale, in which the agent takes the keys of a server that answers again."""
_GIVE_UP = 9.0
"""Seconds, times the scale: twice `keys.timeout`, and as long again for a busy host."""
_GIVEN_UP = refused("keys_unavailable", "key_unknown", "internal_error", status=[503, 401])
_FORGED, _GOOD = 120, 12
"""Credentials of the flood, and of the caller that must be served beside it."""
_NEW, _KNOWN = 3, 20
"""Callers whom STS never confirmed, each asked about right after a forgery; and callers whom it did."""
_CROWD, _FULL, _SLOW, _PROMPT = 60, 8, 5.0, 15.0
"""Forged credentials at once, calls that then wait for STS, seconds of STS for each, and seconds, times the
scale, in which the caller must be served: those of a few calls."""
_CALL, _BOUNDED, _SPARE = 0.3, 2.0, 2.0
"""Seconds, at any scale, of a call when many come at once, and by which an agent may bound the wait for one;
and how many times as long that is as what a sound agent needs for two calls, one after the other."""
_MANY, _FEWEST, _LONGEST = 4200, 1000, 30.0
"""Questions to one worker, more than any table of those on their way should hold; those that say something;
and seconds, times the scale, after which no more are asked."""
_FLOODS = (
    ("a newcomer", "2001:db8:0:1::98", [f"2001:db8:0:0:{number:x}::" for number in range(_CROWD)]),
    ("another newcomer", "::ffff:192.0.2.99", ["::ffff:192.0.2.0"] * _CROWD),  # IPv4 too (6.18)
)
"""The caller, its address, and the address of each question of a flood."""
_MANY_SOURCES = [f"198.51.100.{number}" for number in range(2 * _CROWD)]
_SINCE, _BETWEEN = 5.0, 0.3
"""Seconds, times the scale, from STS's word about the caller to the last flood, and from the caller's
question to the second half of this flood, if the caller waits."""
_SHUT_OUT = refused("sts_rejected", "sts_unavailable", "token_expired", status=[401, 503])


@check("identity.hold.drip", "JWKS-DRIP-001", features={"oidc"})
def drip(target: Target) -> None:
    """A key server that drips is given up, delays no other issuer, and is believed once it is sound.

    It sends one byte each fifth of a second: a timeout for each read would never come.
    """
    with bench(target, "identity-cold", "identity.hold.drip", own=True, keys={"timeout": "2s"}) as here:
        keys = here.issuer("sound")
        keys.fault("jwks", "drip", seconds=0.2)
        keys.rotate("ES256")
        for sub in ("alice", "bob"):
            token = here.token("sound", key="ES256", sub=sub)
            here.expect("a token whose key is on its way in drips", token, _GIVEN_UP, prompt=_GIVE_UP)
            here.expect("another issuer", here.token("led", key="ES256", sub=sub), ALLOWED, prompt=_GIVE_UP)
        keys.clear()
        token = here.token("sound", key="ES256", sub="carol")
        here.expect("once the server is sound", token, ALLOWED, within=_RECOVERY)


@check("identity.hold.forged", "STS-FLOOD-001", features={"sts"})
def forged(target: Target) -> None:
    """Forged STS credentials starve no caller whom STS confirms.

    Each forged credential is well formed and costs a call of STS; the caller's credentials come in
    between, and then many at once, which an agent may ask about one after the other.
    """
    with bench(target, WORLD, flow="forged") as here:
        here.expect("the caller, alone", here.credential(here.reader, expires=300), ALLOWED)
        with here.asking():
            for number in range(_NEW):
                forgery, sound = here.session(), here.session()
                both = here.credential(forgery, secret="wrong"), here.credential(sound)  # noqa: S106
                checks = [_question(text, f"203.0.113.{2 * number + at}") for at, text in enumerate(both)]
                pair = [benches.SpopQuestion("a forgery", checks[0], REFUSE)]
                pair += [benches.SpopQuestion("a newcomer right after it", checks[1], ALLOW)]
                here.judge(pair, here.actions(pair, window=1))
        numbers = iter(range(_FORGED))

        def flood(stranger: Bench, _ended: threading.Event) -> None:
            for number in numbers:
                bad = here.credential(here.reader, secret="wrong", expires=301 + number)  # noqa: S106
                stranger.expect("a forged credential", bad, _SHUT_OUT)

        with beside(here, flood, 4):
            for number in range(_GOOD):
                good = here.credential(here.reader, expires=500 + number)
                here.expect(f"the caller beside the flood, {number + 1} of {_GOOD}", good, ALLOWED)
        texts = [here.credential(here.reader, expires=600 + number) for number in range(2 * _FULL)]
        here.sts_fault("slow", seconds=min(_CALL, here.seconds(_CALL)))
        try:
            with here.asking():
                recording.fixed(_BOUNDED, _SPARE)
                many = [_question(one, "192.0.2.1") for one in texts]
                asked = [benches.SpopQuestion("one of many", each, ALLOW) for each in many]
                here.ask_all(asked, window=len(asked), again=False)
        finally:
            here.sts_clear()


@check("identity.hold.many", "STS-THROTTLE-002", features={"sts"})
def many(target: Target) -> str:
    """A credential passes once STS answers, after more than a thousand questions that STS throttled.

    One worker gets them all. What counts questions on their way must also count those that came back.
    """
    with bench(target, WORLD, flow="many") as here, here.asking():
        texts = [here.credential(here.reader, expires=600 + number) for number in range(_CROWD)]
        here.sts_fault("throttle")
        end, asked = time.monotonic() + here.seconds(_LONGEST), 0
        try:
            while asked < _MANY and time.monotonic() < end:
                crowd = [(_question(text, "192.0.2.1"), None) for text in texts]
                asked += len(here.spread.askers()[0].actions_of(crowd, window=_CROWD // 2))
        finally:
            here.sts_clear()
        here.expect("one of them once STS answers", texts[0], ALLOWED, within=_RECOVERY)
        if asked < _FEWEST:
            within = here.seconds(_LONGEST)
            raise TooSlow(f"only {asked} questions were answered in {within:g} s: too few to tell")
        return f"after {asked} questions"


@check("identity.hold.newcomer", "STS-FLOOD-002", features={"sts"})
def newcomer(target: Target) -> None:
    """A caller whom STS never confirmed is served beside a flood from another address.

    Or from the next network of IPv6. A caller whom STS knows, long before others, is served by each worker
    beside a flood from many addresses, which STS rejected before, and which goes on while the caller waits.
    STS takes seconds for each forged credential, or throttles it, and no longer than usual for the caller's.
    All come over SPOP, so that the judge chooses their addresses.
    """
    suffix = own_suffix()
    hosts = [f"{name}{suffix}.sts.example" for name in ("forged", "newcomer")]
    override = {"sts": [{"name": "forged", "hosts": hosts}]}
    with own_bench(target, WORLD, suffix, override=override, flow="forged") as here, here.asking():
        keys, known = here.session(), [here.session() for _ in range(_KNOWN)]
        texts = [here.credential(each, host=hosts[1]) for each in known]
        before = [
            benches.SpopQuestion("one of many callers", _question(text, f"203.0.113.{number}"), ALLOW)
            for number, text in enumerate(texts)
        ]
        here.judge(before, here.actions(before, window=4))
        due = time.monotonic() + here.seconds(_SINCE)
        for first, (what, source, strangers) in enumerate(_FLOODS, 1):
            here.sts_fault("slow", seconds=here.seconds(_SLOW))
            calls = here.sts_calls()
            text = here.credential(keys, host=hosts[1], expires=2 * _CROWD * first)
            with beside(here, partial(_flood, keys, strangers, 2 * _CROWD * first), 1):
                try:
                    _begun(here, calls)
                    began = time.monotonic()
                    here.ask_all([benches.SpopQuestion(what, _question(text, source), ALLOW)], again=False)
                    if (took := time.monotonic() - began) > here.seconds(_PROMPT):
                        raise here.failed(f"{what} waited {took:.1f} s, at most {_PROMPT:g} s")
                finally:
                    here.sts_clear()
        rest(due - time.monotonic())
        _from_many(here, known[0], here.credential(known[0], host=hosts[1], expires=900))
        _while_throttled(here, keys, here.credential(known[1], host=hosts[1], expires=900))


def _from_many(here: Bench, keys: SessionKeys, text: str) -> None:
    """Flood each worker from many addresses; ask about a known caller between two halves of the flood."""
    what = "the first of many callers"
    caller = benches.SpopQuestion(what, _question(text, "203.0.113.0"), ALLOW)
    before, flood = (_forged(here, keys, _MANY_SOURCES, 2 * _CROWD * times) for times in (3, 4))
    within = here.seconds(_CROWD * _SLOW)
    with Spread(here.world.agent, here.loan.workers, within) as crowd, ThreadPoolExecutor(_CROWD) as pool:

        def each(workers: Spread, asked: list[tuple[Any, None]]) -> list[Future[Any]]:
            ask = [recording.carried(one.actions_of) for one in workers.askers()]
            return [pool.submit(one, asked, window=_CROWD) for one in ask]

        crowd.askers()[0].actions_of(before, window=_CROWD)
        calls = here.sts_calls()
        here.sts_fault("slow", seconds=here.seconds(_SLOW))
        try:
            strangers = each(crowd, flood[:_CROWD])
            _begun(here, calls)
            began, asked = time.monotonic(), each(here.spread, [(caller.check, None)])
            wait(asked, here.seconds(_BETWEEN))
            strangers += each(crowd, flood[_CROWD:])
            for found in asked:
                here.judge([caller], found.result())
            if (took := time.monotonic() - began) > here.seconds(_PROMPT):
                raise here.failed(f"{what} waited {took:.1f} s, at most {_PROMPT:g} s")
        finally:
            here.sts_clear()
        for stranger in strangers:
            stranger.result()


def _while_throttled(here: Bench, keys: SessionKeys, text: str) -> None:
    """Let STS throttle the calls for forged credentials, and ask about a known caller right after them."""
    caller = benches.SpopQuestion("a known caller", _question(text, "203.0.113.1"), ALLOW)
    here.sts_fault("throttle")
    try:
        flood = _forged(here, keys, _MANY_SOURCES[:_FULL], 10 * _CROWD)
        here.spread.askers()[0].actions_of(flood, window=_FULL)
        here.judge([caller], here.actions([caller]), "while STS throttles strangers: ")
    finally:
        here.sts_clear()


def _begun(here: Bench, calls: int) -> None:
    """Wait until STS has more calls, as many as an agent makes for an address at a time, or for a while."""
    any(here.sts_calls() >= calls + _FULL for _last in polls(here.seconds(_SLOW / 3)))


def _forged(here: Bench, keys: SessionKeys, sources: list[str], first: int) -> list[tuple[Any, None]]:
    """Make a question with a forged credential from each address; if all are one, each has its own key id."""
    asked, alone = list[tuple[Any, None]](), len(set(sources)) == 1
    for number, source in enumerate(sources, first):
        key_id = f"ASIA{number:016b}".translate({48: "A", 49: "B"}) if alone else keys.access_key_id
        text = here.credential(keys, secret="wrong", expires=number, key_id=key_id)  # noqa: S106
        asked.append((_question(text, source), None))
    return asked


def _flood(keys: SessionKeys, sources: list[str], first: int, here: Bench, _ended: threading.Event) -> None:
    """Ask with forged credentials from some addresses, all at once."""
    with Asker(here.world.agent.spop_address, timeout=here.seconds(_CROWD * _SLOW)) as asker:
        asker.actions_of(_forged(here, keys, sources, first), window=_CROWD)


def _question(credential: str, source: str) -> dict[str, Any]:
    return iam_check(credential, path="/orders/1", src=source)


@check("identity.hold.shared-kid", "JWKS-SET-006", features={"oidc"})
def shared_kid(target: Target) -> None:
    """An RSA and an EC key may share a kid, and tokens of either are accepted.

    The RFC's own example: keys of different types are equivalent alternatives under one `kid`.
    """
    with bench(target, "identity-cold", "identity.hold.shared-kid", own=True) as here:
        keys = here.issuer("sound")
        for alg in ("RS256", "ES256"):
            keys.add_key(alg, kid="shared")
        for alg in ("RS256", "ES256"):
            token = here.token("sound", key=alg)
            here.expect(f"{alg} under the shared kid", token, ALLOWED, within=_RECOVERY)
