"""Questions that wait for an issuer while a reload comes, beside questions that need not wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SilenceError
from iamroles_scenarios.checks.derived.key_sets import until_right
from iamroles_scenarios.checks.derived.waits import CALLS, NO_STS, NOT_YET, Call, issuer_of, started
from iamroles_scenarios.checks.derived.world import edited, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.answers import ALLOW, Expected, refusal
from iamroles_scenarios.engine.bench import EDGE, STS_ACTION, Bench, SpopQuestion, own_suffix
from iamroles_scenarios.engine.observation import differences
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.asker import Asker

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

_KEYS = {"refresh": "1h", "cooldown": "500ms", "max_stale": "2h", "timeout": "10s"}
_MOVED = {"id": "moved", "roles": ["kiosk"], "methods": ["GET"], "path": "/kiosk", "backend": "orders-rw"}
_RELOAD = {"drop": {"grants": ["kiosk"]}, "add": {"grants": [_MOVED]}}
_OLD: Expected = {**ALLOW, "rule": "kiosk", "backend": "orders-ro"}
_NEW: Expected = {**ALLOW, "rule": "moved", "backend": "orders-rw"}
_PATIENCE, _REFRESH, _STALE = 30.0, 1.0, 5.0
"""Seconds, times the scale: for an answer that waits; and the new policy's `refresh` and `max_stale`."""
_STRAYS = 3
"""Unknown kids: the first may cause a fetch, and the others cannot for a cooldown."""
_LAST: Expected = {**_NEW, "principal": "carol"}
_WHOLE = ({**_OLD, "principal": "bob"}, _LAST, NOT_YET)
_PROVED = (_OLD, _NEW, NO_STS)
"""Answers by one policy, and that of an agent that gives up the wait; of a credential that waits for STS."""


def _endpoints(suffix: str) -> Iterator[dict[str, Any]]:
    """Yield an endpoint whose credentials count once, and an endpoint whose credentials count again."""
    usual = {"endpoint": "{sts}", "binding_value": EDGE, "insecure_http": True, "timeout": _KEYS["timeout"]}
    for name in ("once", "again"):
        yield usual | {"name": name, "hosts": [f"{name}{suffix}.sts.example"], "replay_cache": name == "once"}


def _proving(here: Bench, sts: list[dict[str, Any]]) -> Iterator[tuple[SpopQuestion, tuple[Expected, ...]]]:
    """Stall STS, and yield a question for each endpoint, with all its right answers."""
    for row in sts:
        here.cloud.fault(f"{STS_ACTION}@{row['hosts'][0]}", "stall")
        proof = iam_check(here.credential(here.session("kiosk"), host=row["hosts"][0]))
        yield SpopQuestion(f"a credential that counts {row['name']} waits for STS", proof, _NEW), _PROVED


def _mend(here: Bench, issuers: Iterable[IssuerHandle], sts: list[dict[str, Any]]) -> None:
    for issuer in issuers:
        issuer.clear()
    for row in sts:
        here.cloud.clear(f"{STS_ACTION}@{row['hosts'][0]}")


@check("identity.derived.in-flight", "DERIVED-KEYS-002", features={"oidc", "reload"})
def in_flight(target: Target) -> str:
    """A question that waits for an issuer while a reload comes gets one answer, by one policy alone.

    A question that need not wait is answered meanwhile, by the new policy once it is confirmed. Then a
    withdrawn key, and keys in an outage, open nothing within the times of that policy, also if the outage
    began before the reload. Nor does a pause of a longer cooldown outlive the reload that shortens it. Two
    credentials wait for STS, of which one may count once.
    """
    suffix = own_suffix()
    rows = {f"f{number}": (what, call) for number, (what, call) in enumerate(CALLS.items())}
    known = {name: call for name, (_, call) in rows.items() if call.known}
    issuers = {name: target.worlds.issuer(f"{name}{suffix}") for name in rows}
    down = target.worlds.issuer(f"down{suffix}")
    calls = {**{name: call for name, (_, call) in rows.items()}, "down": Call("jwks", known=True)}
    tables = [issuer_of(name, call) for name, call in calls.items()]
    sts = [] if target.lacks(["sts"]) else list(_endpoints(suffix))

    for name, (_, call) in rows.items():
        if name not in known:
            issuers[name].fault(call.endpoint, "stall")
    override: dict[str, Any] = {"keys": _KEYS, "issuers": tables, "sts": sts}
    with started(target, suffix, **override) as here, ThreadPoolExecutor(1) as pool:

        def ask(what: str, name: str, sub: str, expected: Expected) -> SpopQuestion:
            token = here.token(name, key="ES256", roles=["kiosk"], sub=sub, claims={"who": "carol"})
            return SpopQuestion(what, iam_check(token), expected)

        quick = ask("a sound issuer", "corp", "ann", _OLD)
        ending = ask("an issuer that is down since before the reload", "down", "ann", ALLOW)
        here.wait_for_keys([quick, ending, *(ask("keys", name, "ann", ALLOW) for name in known)])
        down.fault("*", "status", status=503)
        marks = {name: issuers[name].counters().get(call.endpoint, 0) for name, call in known.items()}
        for name, call in known.items():
            issuers[name].fault(call.endpoint, "stall")
            issuers[name].rotate("ES256")
        waiting = [ask(what, name, "bob", _LAST) for name, (what, _) in rows.items()]
        # The call that the issuer counts goes first: an agent may answer a connection question by question.
        judged = [*((question, _WHOLE) for question in reversed(waiting)), *_proving(here, sts)]
        asked = [(question.check, None) for question, _ in judged]
        slow = Asker(here.world.agent.spop_address, timeout=here.seconds(_PATIENCE))
        found = pool.submit(recording.carried(slow.actions_of), asked, window=len(asked))
        try:
            for name, call in known.items():
                issuers[name].wait_for(call.endpoint, marks[name] + 1, here.seconds(5.0))
            here.ask_all([quick], "beside questions that wait: ")
            times = {"refresh": f"{here.seconds(_REFRESH):g}s", "max_stale": f"{here.seconds(_STALE):g}s"}
            claims = {"change": {"issuers": {name: {"principal_claim": "who"} for name in rows}}}
            policy = edited(here.loan.policy, {**_RELOAD, **claims, "set": {"keys": _KEYS | times}})
            here.must_reload(policy, "a grant that moves, a claim, and times")
            moved = SpopQuestion(quick.what, quick.check, _NEW)
            here.ask_all([moved], "beside questions that wait, after the reload: ")
        finally:
            _mend(here, issuers.values(), sts)
        try:
            for (question, wholes), actions in zip(judged, found.result(), strict=True):
                seen = {**answers.UNSET, **answers.read(actions)}
                if all(differences(whole, seen) for whole in wholes):
                    here.note_wrong(f"{question.what}: the answer is of no single policy", question, seen)
        except SilenceError:
            here.note_wrong("a question that waited while a reload came was never answered")
        finally:
            slow.close()
        until_right(here, waiting)
        here.ask_all([*waiting, moved], "after the reload: ")
        issuers["f0"].rotate("ES256", overlap=False)
        issuers["f1"].fault("*", "status", status=503)
        ends = (refusal("key_unknown", "signature_invalid"), refusal("keys_unavailable"))
        ended = [replace(each, expected=one) for each, one in zip(waiting, ends, strict=False)]
        ended += [replace(ending, expected=ends[1])]
        until_right(here, ended)
        here.ask_all(ended, "by the new policy's times: ")
        for cooldown in ("1h", _KEYS["cooldown"]):
            here.must_reload({**policy, "keys": _KEYS | {"cooldown": cooldown}}, f"a cooldown of {cooldown}")
            if cooldown == "1h":
                with Spread(here.world.agent, here.loan.workers, here.seconds(_PATIENCE)) as asking:
                    for worker in asking.askers():
                        strays = [here.token("f2", key="unknown-kid", alg="ES256") for _ in range(_STRAYS)]
                        worker.actions_of([(iam_check(stray), None) for stray in strays], window=1)
        # A stray that was refused may still cause a fetch, of the first key.
        for which in ("a key that came in", "the next one"):
            issuers["f2"].rotate("ES256")
            last = [ask(which, "f2", "dan", _LAST)]
            until_right(here, last)
            here.ask_all(last, "once the cooldown is short again: ")
    return f"{len(rows)} calls, {here.asked} questions"
