"""Bad answers of an issuer and of STS: none, too late, too much, nonsense, another's.

Other checks ask what must be refused meanwhile (`identity.cold`, `identity.keys`, `identity.sts`). These go
the whole way, through HAProxy: who is served during the fault, and how soon everybody is after it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from iamroles_scenarios.checks.fault.fixture import SERVED, fault_bench
from iamroles_scenarios.checks.proxy.traffic import shut
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import own_suffix
from iamroles_scenarios.engine.target import Target

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


@check("fault.answers.keys", "FAULT-NET-002", features={"oidc"}, long=True)
def keys(target: Target) -> str:
    """During any fault of an issuer's answers, also from the start, known keys go on; new ones come later.

    Tokens of a key that the agent has, and of a key that was published meanwhile.
    """
    suffix = own_suffix()
    issuer = target.worlds.issuer(f"corp{suffix}")
    issuer.fault("*", **_EVERYWHERE["failing"])
    times = {"refresh": "1s", "cooldown": "1s", "max_stale": "1h", "timeout": "1s"}
    with fault_bench(target, override={"keys": times}, suffix=suffix, start=False) as here:
        here.ask_during("failing from the start")
        issuer.clear()
        here.must_recover("failing from the start")
        faults = [(what, partial(issuer.fault, "*", **fault)) for what, fault in _OF_ISSUERS.items()]
        here.rotate_through(faults, issuer.clear)
        return here.remark


@check("fault.answers.sts", "FAULT-NET-003", features={"sts"}, long=True)
def sts(target: Target) -> str:
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
