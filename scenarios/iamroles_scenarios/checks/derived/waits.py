"""Every call that an agent makes, and each way in which its answer never ends.

As many first calls of each row as the agent has workers meet a fault that lasts; the next one gets a sound
answer. So an agent that waits for ever shows twice: it answers a question late, and it never accepts a
credential although a later call would do. All rows are played at once, each with an issuer, or a host of STS,
of its own; beside them the checks ask about a sound issuer and a sound host, which must not be slower.
`tests/scenarios/test_derived.py` holds the ways against the faults that the mocks can make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from iamroles_scenarios.base.errors import SilenceError
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.derived.world import POLICY, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.answers import ALLOW, Expected, refusal
from iamroles_scenarios.engine.bench import EDGE, STS_ACTION, Bench, SpopQuestion, own_bench, own_suffix
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import WORKERS

WAYS = {
    "stall": "the request is read, and nothing comes",
    "drip": "a head in single bytes, without end",
    "hang": "the head, half of the body, and then nothing",
    "trickle": "a body in single bytes, without end",
    "endless": "a body without end, as fast as it is read",
}
"""Ways in which an answer never ends, by the fault of the mocks that makes it."""
ENDS = {
    "slow": "identity.kids.herd, policy.hold.in-flight",
    "cut": "identity.keys.*",
    "truncated": "identity.keys.*",
    "status": "identity.cold.first-keys, identity.sts.*",
    "redirect": "identity.cold.redirect, identity.sts.redirect",
    "malformed": "identity.sts.answer, identity.keys.*",
    "content-type": "identity.sts.answer",
    "oversized": "identity.keys.*",
    "ended": "identity.keys.*, identity.sts.answer-size",
    "patch": "identity.cold.mix-up",
    "early": "identity.derived.key-sets",
    "chunked": "identity.derived.key-sets",
    "repeated": "identity.derived.key-sets",
}
"""Faults after which the caller knows that its call is over, and where they are played."""
_GIVE_UP = 5.0
"""Seconds, times the scale, for an answer: discovery and keys, or STS, may take half a second each."""
_RECOVERY = 8.0
"""Seconds, times the scale, in which an agent gives up a call that hangs, and makes another."""
_KEYS = {"refresh": "500ms", "cooldown": "500ms", "max_stale": "1h", "timeout": "500ms"}
NOT_YET = refusal("keys_unavailable", "key_unknown", status={401, 503})
_GONE, _TURNS = {"gone": "http://127.0.0.1:9/"}, 3
"""An endpoint at which nobody is, and how often it is asked, a sound one each time after it."""
NO_STS = refusal("sts_unavailable", status=503)


@dataclass(frozen=True, slots=True)
class Call:
    """A kind of call that an agent makes."""

    endpoint: str
    """The endpoint of the mock that answers."""
    known: bool = False
    """The agent has keys of this issuer already."""


CALLS: Mapping[str, Call] = {
    "discovery": Call("discovery"),
    "the first key set": Call("jwks"),
    "a key set for a new key": Call("jwks", known=True),
}
"""Calls to issuers; those to STS have rows of their own."""


def _rows() -> Iterator[tuple[str, Call, str]]:
    """Yield the name of an issuer, its call, and the way in which that hangs."""
    for number, call in enumerate(CALLS.values()):
        for way in WAYS:
            yield f"w{number}-{way}", call, way


def issuer_of(name: str, call: Call) -> dict[str, Any]:
    """Make an issuer, without `jwks_uri` if it is discovery that hangs."""
    found = {"jwks_uri": f"{{idp}}/{name}/jwks"} if call.endpoint == "jwks" else {}
    return {
        "name": name, "issuer": f"{{idp}}/{name}", "insecure_http": True, "audiences": ["edge"],
        "algorithms": ["ES256"], **found,
    }  # fmt: skip


@contextmanager
def started(
    target: Target,
    suffix: str,
    files: Mapping[str, str] | None = None,
    **override: Any,  # noqa: ANN401 - a policy's tables
) -> Iterator[Bench]:
    """Start a world when the faults are there; `files` are texts beside the world file."""
    override["agent"] = {"drain_timeout": "1s"}
    with (
        own_bench(target, POLICY, suffix, override=override, haproxy=False, files=files) as here,
        here.asking(_GIVE_UP),
    ):
        yield here


def _until_accepted(
    here: Bench, hanging: list[SpopQuestion], beside: list[SpopQuestion], meanwhile: Expected
) -> None:
    """Ask each worker all at once, beside others that must not be late, until it accepts all that hang."""
    left = dict.fromkeys(here.spread.askers(), hanging)
    for _last in polls(here.seconds(_RECOVERY)):
        for worker, asked in left.items():
            try:
                found = here.actions([*asked, *beside], window=len(asked) + len(beside), of=worker)
            except SilenceError:
                waiting = "; ".join(question.what for question in asked)
                here.note_wrong(f"no answer within {_GIVE_UP:g} s while these calls hang: {waiting}")
                return
            here.judge(beside, found[len(asked) :])
            left[worker] = []
            for question, actions in zip(asked, found, strict=False):
                good = answers.read(actions).get("allow") is True
                what, expected = f"{question.what}, which hangs", ALLOW if good else meanwhile
                here.judge([SpopQuestion(what, question.check, expected)], [actions])
                left[worker] += [] if good else [question]
        left = {worker: asked for worker, asked in left.items() if asked}
        if not left:
            return
    for question in chain.from_iterable(left.values()):
        here.note_wrong(f"{question.what}: still refused after {_RECOVERY:g} s, though a new call is sound")


@check("identity.derived.waits", "DERIVED-WAIT-001", features={"oidc"})
def waits(target: Target) -> str:
    """A call to an issuer that never ends is given up, in every way in which it may not end.

    Discovery and key sets, before any keys and for a new one.
    """
    suffix = own_suffix()
    rows, workers = list(_rows()), 1 if target.lacks(["workers"]) else WORKERS
    issuers = {name: target.worlds.issuer(f"{name}{suffix}") for name, _, _ in rows}
    for name, call, way in rows:
        if not call.known:
            issuers[name].fault(call.endpoint, way, times=workers, seconds=0.2)
    tables = [issuer_of(name, call) for name, call, _ in rows]
    with started(target, suffix, keys=_KEYS, issuers=tables) as here:

        def ask(what: str, name: str, sub: str = "ann") -> SpopQuestion:
            token = here.token(name, key="ES256", roles=["kiosk"], sub=sub)
            return SpopQuestion(what, iam_check(token), ALLOW)

        sound = ask("a sound issuer beside calls that hang", "corp")
        known = [ask(name, name) for name, call, _ in rows if call.known]
        here.wait_for_keys([sound, *known])
        here.ask_all(known, "before its call hangs: ", again=False)
        for name, call, way in rows:
            if call.known:
                issuers[name].fault(call.endpoint, way, times=workers, seconds=0.2)
                issuers[name].rotate("ES256")
        shown = {call: what for what, call in CALLS.items()}
        hanging = [ask(f"{shown[call]}: {WAYS[way]}", name, "bob") for name, call, way in rows]
        _until_accepted(here, hanging, [sound], NOT_YET)
        for name, _, _ in rows:
            issuers[name].clear()
    return f"{len(rows)} calls that do not end, {here.asked} questions"


@check("identity.derived.sts-waits", "DERIVED-WAIT-002", features={"sts"})
def sts_waits(target: Target) -> str:
    """A call to STS that never ends is given up, in every way in which it may not end.

    One host for each way; the credential is another one each time, so that no memory answers. An STS that
    nobody can reach delays no credential for another.
    """
    suffix, used = own_suffix(), count(100)
    hosts = {way: f"{way}{suffix}.sts.example" for way in ("sound", "gone", *WAYS)}
    tables = [
        {"name": way, "endpoint": _GONE.get(way, "{sts}"), "hosts": [host], "binding_header": "x-iam-edge",
         "binding_value": EDGE, "insecure_http": True, **({} if way == "sound" else {"timeout": "500ms"})}
        for way, host in hosts.items()
    ]  # fmt: skip
    cloud = target.stage.cloud
    with started(target, suffix, sts=tables) as here:
        session = here.session("kiosk")

        def ask(way: str, expected: Expected = ALLOW) -> SpopQuestion:
            text = here.credential(session, expires=next(used), host=hosts[way])
            what = WAYS.get(way, f"a {way} one beside others in trouble")
            return SpopQuestion(f"STS: {what}", iam_check(text), expected)

        before = [ask(way) for way in hosts if way not in _GONE]
        here.ask_all(before, "before: ", again=False)
        turns = [each for _ in range(_TURNS) for each in (ask("gone", NO_STS), ask("sound"))]
        here.judge(turns, here.actions(turns, window=1))
        for way in WAYS:
            cloud.fault(f"{STS_ACTION}@{hosts[way]}", way, times=here.loan.workers, seconds=0.2)
        try:
            _until_accepted(here, [ask(way) for way in WAYS], [ask("sound")], NO_STS)
        finally:
            for way in WAYS:
                cloud.clear(f"{STS_ACTION}@{hosts[way]}")
    return f"{len(WAYS)} calls that do not end, {here.asked} questions"
