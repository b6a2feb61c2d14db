"""Bound tokens while something changes: the policy, the second, a nonce's window; the names of proofs."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.base.sent import note
from iamroles_scenarios.checks.bound.rows import BASES, DPOP, Asking, answer_of, bound
from iamroles_scenarios.checks.derived.issuers import NEEDED, OPTIONAL
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.answers import read
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.key_sets import keeping
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.proof import combined

_MAX_AGE, _LEEWAY = 60, 5
"""Seconds, as the policy has them by default."""
_BEFORE, _AFTER = 2.0, 0.05
"""Seconds from minting to asking, times the scale, and beyond an edge."""
_WINDOW, _KEY, _LEAST, _MOST = 2.0, "nonce.key", 32, 4096
"""Seconds of a nonce's window, times the scale; the file of the key, and the fewest and most octets in it."""
_ALL = {"certificate", "dpop", "reload"}
_OWN: dict[str, Any] = {"token": {"claims": {"cnf": {"jkt": "{own}"}}}}
"""A token that is bound to the key that the proof shows."""


@check("bound.policy.reload", "BOUND-POLICY-002", "BOUND-POLICY-001", features=_ALL)
def reloads(target: Target) -> str:
    """Each key of a binding decides from its reload on, in every worker, also for questions seen before."""
    with bound(target, "bound.policy.reload", dpop=DPOP) as here:
        asking, policy = Asking(here), here.loan.policy
        for row in table("proofs")["reloads"]:
            first, *rest = policy["issuers"]
            first = {**first, "bound": row.get("bound", "accepted")}
            if first["bound"] == "{absent}":
                del first["bound"]
            others = [] if row.get("alone") else rest
            fresh = {**policy, "issuers": [first, *others], "dpop": {**DPOP, **row.get("dpop", {})}}
            if row.get("drop"):
                del fresh["dpop"]
            here.must_reload(fresh, row["what"])
            uncounted = {} if row.get("counts", True) else {"proof": ""}
            answers = {name: answer_of(row["answers"].get(name, "allow")) | uncounted for name in BASES}
            asked = [asking.question(name, base, answers[name]) for name, base in BASES.items()]
            here.ask_all(asked, f"{row['what']}: ")
        return f"{here.asked} questions"


@check("bound.dpop.algorithms", "DPOP-ALG-001", "DPOP-KEY-001", features={"dpop", "reload"})
def algorithms(target: Target) -> str:
    """A policy that lists one algorithm takes proofs by it and by no other, and none whose `jwk` is private.

    Or the policy is refused: an agent may lack the algorithm.
    """
    with bound(target, "bound.dpop.algorithms", dpop=DPOP) as here:
        asking, names, lacking = Asking(here), (*NEEDED, *OPTIONAL), list[str]()
        own = {name: combined(BASES["dpop"], {"signer": name, **_OWN}) for name in names}
        for name in names:
            if not here.reload({**here.loan.policy, "dpop": {**DPOP, "algorithms": [name]}}).get("reloaded"):
                lacking.append(name)
                continue
            answers = {one: answer_of("allow" if one == name else "proof_invalid") for one in names}
            asked = [asking.question(f"a proof by {one}", own[one], answers[one]) for one in names]
            private = combined(own[name], {"proof": {"header": {"jwk": "{private}"}}})
            asked.append(asking.question(f"{name}, a private `jwk`", private, answer_of("proof_invalid")))
            for one in (one for one in names if name[:2] == one[:2] == "ES" and one != name):
                odd = combined(own[one], {"proof": {"alg": name}})
                asked.append(asking.question(f"{name} by a key for {one}", odd, answer_of("proof_invalid")))
            here.ask_all(asked, f"{name} is listed: ")
        return f"{here.asked} questions; not offered: {', '.join(lacking) or 'none'}"


@check("bound.policy.refused", "DERIVED-KEY-004", features=_ALL)
def refused(target: Target) -> str:
    """A policy whose keys of a binding are unknown, missing, of another type or out of range is refused."""
    with bound(target, "bound.policy.refused", dpop=DPOP) as here:
        policy, count = here.loan.policy, 0
        here.world.agent.put("short.key", "x" * (_LEAST - 1))
        first, *rest = policy["issuers"]
        unbound = [{**one, "bound": "refused"} for one in policy["issuers"]]
        tables = {"client_certificate": {"from": ["10.0.0.0/8"]}, "issuers": first}
        for name, rows in table("proofs")["refused"].items():
            count += len(rows)
            for row in rows:
                own = {**tables.get(name, DPOP), **row}
                own = {key: value for key, value in own.items() if value != "{absent}"}
                bad: dict[str, Any] = {name: [own, *rest] if name == "issuers" else own}
                bad = {"dpop": own, "issuers": unbound} if name == "unused" else bad
                if here.reload({**policy, **bad}).get("reloaded"):
                    here.note_wrong(f"a policy was taken, {name}: {row}")
        return f"{count} policies"


@check("bound.dpop.names", "DPOP-PROOF-001", features={"dpop"})
def names(target: Target) -> str:
    """A proof has one name however its URI is spelt, and no two proofs have the same.

    Key, `jti`, method and URI make the name; letters that move from one to the next give another. A refused
    request has none.
    """
    with bound(target, dpop=DPOP) as here:
        asking, one = Asking(here), combined(BASES["dpop"], {"proof": {"claims": {"jti": "one"}}})
        rows: Mapping[str, list[Mapping[str, Any]]] = table("proofs")["names"]
        asked = {
            kind: [
                asking.question(str(row), combined(one, row), answer_of(row.get("answer", "allow")))
                for row in found
            ]
            for kind, found in rows.items()
        }
        here.ask_all([*asked["other"], *asked["refused"]])
        said = {kind: [read(each) for each in here.actions(asked[kind])] for kind in rows}
        same = {each.get("proof") for each in said["same"] if each.get("allow")}
        others = [each.get("proof") for each in said["other"]]
        if len(same) != 1:
            here.note_wrong(f"one proof has {len(same)} names", asked["same"][-1])
        for question, name in zip(asked["other"], others, strict=True):
            if not name or name in same or others.count(name) > 1:
                here.note_wrong(f"{question.what}: the name of another proof, or none", question)
        return f"{here.asked} questions"


@check("bound.dpop.seconds", "DPOP-TIME-001", "BOUND-MEMORY-001", features={"dpop"})
def seconds(target: Target) -> str:
    """A proof counts from its `iat` less the leeway to the last second of its age, remembered or not.

    Once where the proxy counts proofs, and once where it does not, with the greatest age and no leeway.
    """
    most = {**DPOP, "replay": "none", "max_age": "5m", "leeway": "0s"}
    return f"{_seconds(target, DPOP, _MAX_AGE, _LEEWAY) + _seconds(target, most, 300, 0)} questions"


def _seconds(target: Target, dpop: Mapping[str, Any], age: int, leeway: int) -> int:
    with bound(target, dpop=dpop) as here:
        asking = Asking(here)
        here.wait_for_keys([asking.question("keys", BASES["dpop"])])  # both sides have their keys then
        second = math.ceil(time.time() + target.seconds(_BEFORE))

        def made(what: str, iat: int, answer: str) -> SpopQuestion:
            return asking.question(what, combined(BASES["dpop"], {"proof": {"iat": iat}}), answer_of(answer))

        early = [
            made("a proof in its last second", second - age, "allow"),
            made("a proof from ahead", second + leeway, "proof_invalid"),
        ]
        found = [answer for _ in range(2) for answer in here.actions(early)]
        here.in_time(second, "questions before a second that was a moment off")
        here.judge(2 * early, found)
        rest(second + _AFTER - time.time())
        here.ask_all([SpopQuestion("a proof not ahead now", early[1].check, answer_of("allow"))], again=False)
        rest(second + 1 + _AFTER - time.time())
        late = made("a proof that is old", second - age, "proof_invalid")
        again = SpopQuestion("a proof that was accepted and is old now", early[0].check, late.expected)
        here.judge([again, late], here.actions([again, late]))
        return here.asked


def _question(asking: Asking, what: str, nonce: object, answer: str = "allow", **row: Any) -> SpopQuestion:  # noqa: ANN401 - of a row
    """Make a question with a nonce in its proof; None: without."""
    claims = {} if nonce is None else {"nonce": nonce}
    return asking.question(
        what, combined(BASES["dpop"], {"proof": {"claims": claims}}, row), answer_of(answer)
    )


def _reload(here: Bench, window: int = 300, *, key: str = "", file: str = _KEY) -> str:
    """Reload with nonces of a key, by default a new one, and return it; without a file of its own."""
    key = key or secrets.token_hex(32)
    if file:
        here.world.agent.put(file, key)
    nonces = {"nonce": True, "nonce_lifetime": f"{window}s", **({"nonce_key": file} if file else {})}
    here.world.agent.put("next.json", json.dumps(table("proofs")["shadow"]))
    policy = {**here.loan.policy, "dpop": {**DPOP, **nonces}}
    if file != _KEY:
        policy["agent"] = {**policy.get("agent", {}), "shadow_policy": "next.json"}
    here.must_reload(policy, "it asks for nonces")
    return key


def _given(here: Bench, asking: Asking, worker: int = 0) -> str:
    """Return the nonce that one of the workers gives with the refusal of a proof without any."""
    asked, askers = _question(asking, "a proof without nonce", None, "nonce_required"), here.spread.askers()
    found = here.actions([asked], of=askers[worker % len(askers)])
    here.judge([asked], found)
    nonce = str(read(found[0]).get("nonce", ""))
    return note("nonce", nonce, nonce)


@check("bound.dpop.nonces", "DPOP-NONCE-001", "BOUND-MEMORY-001", features={"dpop", "reload"})
def nonces(target: Target) -> str:
    """With `nonce`, a proof without a nonce of this gate is refused and gets one, which every worker accepts.

    No nonce, one of a key with another last octet, one bent; the right one to each worker. Then the same key
    in another file, and no file, beside a shadow policy; at last, after a stop, one with another first octet
    of the fewest: they are not UTF-8, and end in a line feed.
    """
    with bound(target, "bound.dpop.nonces", dpop=DPOP, agent=keeping(target.stage)) as here:
        asking, most = Asking(here), secrets.token_hex(_MOST)[: _MOST - 1]
        least = most[: _LEAST - 2] + "\n"
        _reload(here, key=f"{most}a")
        other = _given(here, asking)
        key = _reload(here, key=f"{most}b")
        own, second = _given(here, asking), _given(here, asking, 1)
        bent = own[:-2] + ("A" if own[-2] != "A" else "B") + own[-1]
        asked = [_question(asking, "another worker's nonce", second)]
        for nonce in ("", other, bent, f"{own}A", own[:-4], own.swapcase(), f"{own} ", "x" * 600, None):
            asked.append(_question(asking, f"the nonce {nonce}", nonce, "nonce_required"))
            asked.append(_question(asking, "its own nonce", own))
        asked.append(_question(asking, "a number as nonce", 7, "nonce_required or proof_invalid"))
        asked.append(asking.question("a plain token", BASES["plain"]))
        here.ask_all(asked, window=1)
        _reload(here, key=key, file="copy.key")
        here.ask_all([_question(asking, "a nonce of this key, which stood in another file", own)])
        _reload(here, file="")
        here.ask_all([_question(asking, "a worker's nonce, without a file", _given(here, asking))])
        _reload(here, key=f"\udcff{least}")
        former = _given(here, asking)
        here.world.agent.stop()
        here.world.agent.put(_KEY, f"\udcfe{least}")
        here.world.agent.start()
        here.wait_for_keys([asking.question("keys", BASES["plain"])])
        here.ask_all([_question(asking, "a nonce of the key before", former, "nonce_required")])
        return f"{here.asked} questions"


@check("bound.dpop.nonce-window", "DPOP-NONCE-002", "DPOP-NONCE-001", features={"dpop", "reload"}, long=True)
def nonce_window(target: Target) -> str:
    """A nonce passes until the window after its own ends, also over a restart of the agent, and no longer.

    In its second window the answer brings a fresh one.
    """
    with bound(target, "bound.dpop.nonce-window", dpop=DPOP) as here:
        asking, window = Asking(here), round(_WINDOW * target.scale) + 1
        _reload(here, window)
        given, nonce, renewed = time.time(), _given(here, asking), 0.0
        known, allowed = time.time(), given
        here.world.agent.kill()
        here.world.agent.start()
        here.wait_for_keys([asking.question("keys", BASES["plain"])])
        for _last in polls(3 * window):
            asked, began = _question(asking, "a nonce of this window or the one before", nonce), time.time()
            [actions] = here.actions([asked])
            seen = read(actions)
            if not seen.get("allow"):
                if time.time() < given + window:
                    here.judge([asked], [actions])
                if not renewed:
                    here.in_time(allowed + window, "a question in a nonce's second window")
                break
            allowed = began
            if began > min(known + 2 * window, (renewed or known + window) + window):
                here.note_wrong("a nonce passes after the window that follows its own", asked, seen)
            renewed = renewed or (time.time() if seen.get("nonce") else 0.0)
        if not renewed:
            here.note_wrong("no answer in a nonce's second window brought a fresh one")
        last = _question(asking, "a nonce that is over", nonce, "nonce_required")
        here.judge([last], here.actions([last]))
        return f"{here.asked} questions"
