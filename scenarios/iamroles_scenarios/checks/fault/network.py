"""The network between each pair of parts: cut, reset, late, half-closed, one byte at a time.

`stage.breaker` stands between the two. A delay (`late`, `drip`) must change no answer; a break may cost
answers, and must make none wrong.

Beside it, bad answers of an issuer and of STS: none, too late, too much, nonsense, another's. Other checks
ask what must be refused meanwhile (`identity.cold`, `identity.keys`, `identity.sts`). These go the whole way,
through HAProxy: who is served during the fault, and how soon everybody is after it.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from iamroles_scenarios.checks.fault.fixture import SERVED, fault_bench
from iamroles_scenarios.checks.proxy.traffic import must_answer, shut
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import own_suffix
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.breaker import FAULTS, Breaker

_DELAYS = ("late", "drip")
_TIMES = {"refresh": "1s", "cooldown": "1s", "max_stale": "1h", "timeout": "1s"}
"""The `keys` table of an agent that soon asks for its keys again."""
_EVERYWHERE: dict[str, dict[str, Any]] = {
    "down": {"kind": "cut"},
    "stalled": {"kind": "stall"},
    "slow": {"kind": "slow", "seconds": 0.3},
    "redirecting": {"kind": "redirect", "location": "http://127.0.0.1:1/"},
    "malformed": {"kind": "malformed"},
    "failing": {"kind": "status", "status": 500},
}
_OF_ISSUERS = _EVERYWHERE | {
    "dripping": {"kind": "drip", "seconds": 0.2},
    "oversized": {"kind": "oversized"},
    "lying": {"kind": "malformed", "body": '{"keys": {}}'},
}
_OF_STS = _EVERYWHERE | {"throttling": {"kind": "throttle"}}


@check("fault.network.agent", "FAULT-NET-001", long=True)
def agent(target: Target) -> str:
    """No fault of the bytes between HAProxy and the agent gives a wrong verdict.

    A verdict is never made of half a frame, and a frame of single bytes is one all the same.
    """
    with ExitStack() as stack:
        breakers: list[Breaker] = []

        def between(host: str, asked: str) -> str:
            breakers.append(stack.enter_context(Breaker(host, asked)))
            return breakers[0].address

        with fault_bench(target, between=between) as here:
            here.breaker = breakers[0]
            for fault in FAULTS:
                breakers[0].breaks(fault)
                here.ask_during(fault, served=fault in _DELAYS)
                breakers[0].mends()
                here.must_recover(fault)
            return here.remark


@check("fault.network.keys", "FAULT-NET-002", features={"oidc"}, long=True)
def keys(target: Target) -> str:
    """During any fault between the agent and an issuer known keys go on; new ones come after it.

    Tokens of a key that the agent has, and of a key that was published meanwhile.
    """
    suffix = own_suffix()
    idp = urlsplit(target.stage.urls["idp"])
    with Breaker(target.stage.host, idp.netloc) as breaker:
        override = {
            "issuers": [{"name": "corp", "jwks_uri": f"http://{breaker.address}/corp{suffix}/jwks"}],
            "keys": _TIMES,
        }
        with fault_bench(target, override=override, suffix=suffix) as here:
            here.rotate_through([(fault, partial(breaker.breaks, fault)) for fault in FAULTS], breaker.mends)
            return here.remark


@check("fault.network.sts", "FAULT-NET-003", features={"sts"}, long=True)
def sts(target: Target) -> str:
    """During any fault between the agent and STS, only callers that STS confirmed are allowed.

    A credential that STS would confirm, and a wrong credential, each of them new each time.
    """
    with (
        Breaker(target.stage.host, urlsplit(target.stage.urls["sts"]).netloc) as breaker,
        fault_bench(target, sts=f"http://{breaker.address}") as here,
    ):
        here.breaker = breaker
        for fault in FAULTS:
            breaker.breaks(fault)
            here.ask_during(fault, [here.caller(SERVED)], served=fault == "drip")
            here.ask_during(fault, [here.caller(shut(401), secret="wrong")])  # noqa: S106 - no secret
            breaker.mends()
            here.must_recover(fault, [here.caller(SERVED)])
        return here.remark


@check("fault.network.backend", "FAULT-NET-004", long=True)
def backend(target: Target) -> str:
    """A fault between HAProxy and one backend changes no answer of the others.

    The readers' backend breaks. Orders are placed, and refusals come, as before.
    """
    with fault_bench(target, start=False) as sound:
        servers = {one["name"]: one["servers"][0] for one in sound.world.document["backends"]}
    with Breaker(target.stage.host, servers["orders-ro"]) as breaker:
        override = {"backends": [{"name": "orders-ro", "servers": [breaker.address]}]}
        with fault_bench(target, override=override) as here:
            others = [question for question in here.people if question.expected.backend != "orders-ro"]
            readers = [question for question in here.people if question not in others]
            for fault in FAULTS:
                breaker.breaks(fault)
                if fault in _DELAYS or fault == "refused":
                    here.ask_during(fault, readers[:1], served=fault in _DELAYS)
                with here.waiting(readers[0]):
                    here.ask_during(f"{fault}, others", others, served=True)
                    breaker.mends()
                here.must_recover(fault)
            return here.remark


@check("fault.network.client", "FAULT-NET-005", long=True)
def client(target: Target) -> str:
    """During a fault between a client and HAProxy it gets its own answer or none; others see no change.

    A request in single bytes is served; half a request reaches no backend.
    """
    with fault_bench(target, start=False) as here:
        direct = here.address
        with Breaker("127.0.0.1", f"{direct[0]}:{direct[1]}") as breaker:
            host, _, port = breaker.address.rpartition(":")
            here.address = host, int(port)
            here.must_recover("start")
            for fault in FAULTS:
                breaker.breaks(fault)
                if fault in ("reset", "refused", "cut"):
                    other = here.another()
                    with closing(other.client):
                        must_answer(other, here.people[0], f"to another client during the fault {fault}")
                if fault != "cut":  # a client that is cut off waits; its answer is its own
                    here.ask_during(fault, served=fault in _DELAYS)
                breaker.mends()
                here.must_recover(fault)
            return here.remark


@check("fault.answers.keys", "FAULT-NET-002", features={"oidc"}, long=True)
def bad_keys(target: Target) -> str:
    """During any fault of an issuer's answers, also from the start, known keys go on; new ones come later.

    Tokens of a key that the agent has, and of a key that was published meanwhile. What fails from the start
    is asked again long before `refresh`.
    """
    suffix, rare = own_suffix(), _TIMES | {"refresh": "5m"}
    issuer = target.worlds.issuer(f"corp{suffix}")
    issuer.fault("*", **_EVERYWHERE["failing"])
    with fault_bench(target, override={"keys": rare}, suffix=suffix, start=False) as here:
        here.ask_during("failing from the start")
        issuer.clear()
        here.must_recover("failing from the start")
    suffix = own_suffix()
    issuer = target.worlds.issuer(f"corp{suffix}")
    with fault_bench(target, override={"keys": _TIMES}, suffix=suffix) as here:
        faults = [(what, partial(issuer.fault, "*", **fault)) for what, fault in _OF_ISSUERS.items()]
        here.rotate_through(faults, issuer.clear)
        return here.remark


@check("fault.answers.sts", "FAULT-NET-003", features={"sts"}, long=True)
def bad_sts(target: Target) -> str:
    """During any fault of STS's answers, only callers that it confirmed are allowed; all are served after it.

    A credential that STS would confirm, and a wrong credential, each of them new each time.
    """
    with fault_bench(target, sts=target.stage.urls["sts"]) as here:
        for what, fault in _OF_STS.items():
            here.sts_fault(**fault)
            here.ask_unknown(what, here.caller(SERVED))
            here.ask_during(what, [here.caller(shut(401), secret="wrong")])  # noqa: S106 - no secret
            here.sts_clear()
            here.must_recover(what, [here.caller(SERVED)])
        return here.remark
