"""Questions that wait for an issuer while a reload comes, beside questions that need not wait."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import SilenceError
from iamroles_scenarios.checks.derived.key_sets import until_right
from iamroles_scenarios.checks.derived.waits import CALLS, issuer_of, started
from iamroles_scenarios.checks.derived.world import edited, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.answers import ALLOW, Expected, refusal
from iamroles_scenarios.engine.bench import SpopQuestion, own_suffix
from iamroles_scenarios.engine.observation import differences
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.asker import Asker

_KEYS = {"refresh": "1h", "cooldown": "500ms", "max_stale": "2h", "timeout": "10s"}
_MOVED = {"id": "moved", "roles": ["kiosk"], "methods": ["GET"], "path": "/kiosk", "backend": "orders-rw"}
_RELOAD: Mapping[str, Any] = {"drop": {"grants": ["kiosk"]}, "add": {"grants": [_MOVED]}}
_OLD: Expected = {**ALLOW, "rule": "kiosk", "backend": "orders-ro"}
_NEW: Expected = {**ALLOW, "rule": "moved", "backend": "orders-rw"}
_PATIENCE = 30.0
"""Seconds, times the scale, for the answer to a question that waits."""
_WHOLE = (_OLD, _NEW, refusal("keys_unavailable", "key_unknown", status={401, 503}))
"""Answers by one policy, and that of an agent that gives up the wait."""


@check("identity.derived.in-flight", "DERIVED-KEYS-002", features={"oidc", "reload"})
def in_flight(target: Target) -> str:
    """A question that waits for an issuer while a reload comes gets one answer, by one policy alone.

    A question that need not wait is answered meanwhile, by the new policy once it is confirmed.
    """
    suffix = own_suffix()
    rows = {f"f{number}": (what, call) for number, (what, call) in enumerate(CALLS.items())}
    issuers = {name: target.worlds.issuer(f"{name}{suffix}") for name in rows}
    tables = [issuer_of(name, call) for name, (_, call) in rows.items()]

    def hold(known: bool) -> None:
        for name, (_, call) in rows.items():
            if call.known == known:
                issuers[name].fault(call.endpoint, "stall")

    hold(known=False)
    with started(target, suffix, keys=_KEYS, issuers=tables) as here, ThreadPoolExecutor(1) as pool:

        def ask(what: str, name: str, sub: str, expected: Expected) -> SpopQuestion:
            return SpopQuestion(
                what, iam_check(here.token(name, key="ES256", roles=["kiosk"], sub=sub)), expected
            )

        quick = ask("a sound issuer", "corp", "ann", _OLD)
        here.wait_for_keys(
            [quick, *(ask("keys", name, "ann", ALLOW) for name, (_, call) in rows.items() if call.known)]
        )
        hold(known=True)
        marks = {name: issuers[name].counters() for name in rows}
        for name, (_, call) in rows.items():
            if call.known:
                issuers[name].rotate("ES256")
        waiting = [ask(what, name, "bob", _NEW) for name, (what, _) in rows.items()]
        # The call that the issuer counts goes first: an agent may answer a connection question by question.
        asked = [(question.check, None) for question in reversed(waiting)]
        slow = Asker(here.world.agent.spop_address, timeout=here.seconds(_PATIENCE))
        found = pool.submit(recording.carried(slow.actions_of), asked, window=len(asked))
        try:
            for name, (_, call) in rows.items():
                if call.known:
                    before = marks[name].get(call.endpoint, 0)
                    issuers[name].wait_for(call.endpoint, before + 1, here.seconds(5.0))
            here.ask_all([quick], "beside questions that wait: ")
            here.must_reload(edited(here.loan.policy, _RELOAD), "a grant that moves")
            moved = SpopQuestion(quick.what, quick.check, _NEW)
            here.ask_all([moved], "beside questions that wait, after the reload: ")
        finally:
            for each in issuers.values():
                each.clear()
        try:
            for question, actions in zip(reversed(waiting), found.result(), strict=True):
                seen = {**answers.UNSET, **answers.read(actions)}
                if all(differences(whole, seen) for whole in _WHOLE):
                    here.note_wrong(f"{question.what}: the answer is of no single policy", question, seen)
        except SilenceError:
            here.note_wrong("a question that waited while a reload came was never answered")
        finally:
            slow.close()
        until_right(here, waiting)
        here.ask_all([*waiting, moved], "after the reload: ")
    return f"{len(rows)} calls, {here.asked} questions"
