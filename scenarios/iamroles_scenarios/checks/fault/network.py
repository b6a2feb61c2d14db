"""The network between each pair of parts: cut, reset, late, half-closed, one byte at a time.

`stage.breaker` stands between the two. What only delays (`late`, `drip`) must change no answer; what breaks
may cost answers, and must give nobody a wrong one.
"""

from __future__ import annotations

from contextlib import closing
from urllib.parse import urlsplit

from iamroles_scenarios.checks.fault.ground import ONE, SERVED, Ground, ground, sts_ground
from iamroles_scenarios.checks.proxy.traffic import Turn, person, shut
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import own_suffix
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.breaker import FAULTS, Breaker

_DELAYS = ("late", "drip")


def _all(place: Ground, breaker: Breaker, turns: list[Turn], after: list[Turn] | None = None) -> str:
    """Each fault in turn, and the way back from it; the remark."""
    place.recovers("start", turns)
    for fault in FAULTS:
        breaker.breaks(fault)
        place.hold(fault, turns, served=fault in _DELAYS)
        breaker.mends()
        place.recovers(fault, after or turns)
    return place.remark


@check("fault.network.agent", "FAULT-NET-001", long=True)
def agent(target: Target) -> str:
    """Whatever happens to the bytes between HAProxy and the agent, nobody gets a wrong verdict.

    A verdict is never made of half a frame, and a frame of single bytes is one all the same.
    """
    breakers: list[Breaker] = []

    def between(host: str, asked: str) -> str:
        breakers.append(Breaker(host, asked))
        return breakers[0].address

    try:
        with ground(target, between=between) as place:
            return _all(place, breakers[0], person(place.gate, "alice"))
    finally:
        for breaker in breakers:
            breaker.close()


@check("fault.network.keys", "FAULT-NET-002", features={"oidc"}, long=True)
def keys(target: Target) -> str:
    """Whatever happens between the agent and an issuer, known keys go on; new ones come after it.

    Tokens of a key that the agent has, of one that was published meanwhile, and of one that never was.
    """
    suffix = own_suffix()
    idp = urlsplit(target.stage.urls["idp"])
    with Breaker(target.stage.host, idp.netloc) as breaker:
        override = {
            "issuers": [{"name": "corp", "jwks_uri": f"http://{breaker.address}/corp{suffix}/jwks"}],
            "keys": {"refresh": "1s", "cooldown": "1s", "max_stale": "1h", "timeout": "1s"},
        }
        with ground(target, override=override, suffix=suffix) as place:
            issuer, people = place.gate.issuer(), person(place.gate, "alice")
            place.recovers("start", people)
            for fault in FAULTS:
                breaker.breaks(fault)
                issuer.announce()
                issuer.adopt()
                new = Turn(ONE, place.gate.token(sub="bob"), SERVED)
                place.hold(fault, people, served=True)
                place.unknown(f"{fault}, a token of a new key", new)
                breaker.mends()
                place.recovers(fault, [new, *people])
            return place.remark


@check("fault.network.sts", "FAULT-NET-003", features={"sts"}, long=True)
def sts(target: Target) -> str:
    """Whatever happens between the agent and STS, nobody is allowed whom STS did not confirm.

    A credential that STS would confirm, and one that it would not; each of them new each time.
    """
    with (
        Breaker(target.stage.host, urlsplit(target.stage.urls["sts"]).netloc) as breaker,
        sts_ground(target, f"http://{breaker.address}") as (place, _, asked),
    ):
        place.recovers("start", [asked(SERVED)])
        for fault in FAULTS:
            breaker.breaks(fault)
            place.hold(fault, [asked(SERVED)], served=fault == "drip")
            place.hold(fault, [asked(shut(401), secret="wrong")])  # noqa: S106 - no secret
            breaker.mends()
            place.recovers(fault, [asked(SERVED)])
        return place.remark


@check("fault.network.backend", "FAULT-NET-004", long=True)
def backend(target: Target) -> str:
    """Whatever happens between HAProxy and one backend, requests of others are served as ever.

    The backend of readers breaks; those who place orders, and those who must be refused, see nothing.
    """
    with ground(target) as sound:
        servers = {one["name"]: one["servers"][0] for one in sound.gate.world.document["backends"]}
    with Breaker(target.stage.host, servers["orders-ro"]) as breaker:
        override = {"backends": [{"name": "orders-ro", "servers": [breaker.address]}]}
        with ground(target, override=override) as place:
            people = person(place.gate, "alice")
            others = [turn for turn in people if turn.expected.backend != "orders-ro"]
            readers = [turn for turn in people if turn not in others]
            place.recovers("start", people)
            for fault in FAULTS:
                breaker.breaks(fault)
                if fault in _DELAYS or fault == "refused":
                    place.hold(fault, readers[:1], served=fault in _DELAYS)
                with place.asking(readers[0]):  # and waits, perhaps
                    place.hold(f"{fault}, others", others, served=True)
                    breaker.mends()
                place.recovers(fault, people)
            return place.remark


@check("fault.network.client", "FAULT-NET-005", long=True)
def client(target: Target) -> str:
    """Whatever happens between a client and HAProxy, it gets its own answer or none; others see nothing.

    A request in single bytes is a request; half of one reaches nobody.
    """
    with ground(target) as place:
        direct = place.address
        with Breaker("127.0.0.1", f"{direct[0]}:{direct[1]}") as breaker:
            host, _, port = breaker.address.rpartition(":")
            place.address = host, int(port)
            people = person(place.gate, "alice")
            place.recovers("start", people)
            for fault in FAULTS:
                breaker.breaks(fault)
                if fault in ("reset", "refused", "cut"):
                    with closing(place.gate.another().client) as other:
                        turn = people[0]
                        seen = other.ask(turn.request, turn.token, with_reason=False)
                        if turn.wrong(seen):
                            raise place.gate.failed(
                                f"{fault} for another: the answer is wrong", seen, turn.expected
                            )
                if fault != "cut":  # a client that is cut off waits; its answer is nobody else's
                    place.hold(fault, people, served=fault in _DELAYS)
                breaker.mends()
                place.recovers(fault, people)
            return place.remark
