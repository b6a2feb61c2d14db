"""STS that throttles, stalls, lies or leads elsewhere: all of the mock cloud."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import Untestable, WaitTimeoutError
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.checks.identity.caller import WORLD
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine import bench as benches
from iamroles_scenarios.engine.answers import ALLOW, read
from iamroles_scenarios.engine.bench import ALLOWED, STS_ACTION, Pending, SpopQuestion, bench, refused
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.engine.target import Target

_TROUBLE = refused("sts_unavailable", status=503)
_NOT_BELIEVED = refused(
    *("sts_rejected", "sts_unavailable", "role_malformed", "role_missing", "claim_invalid"),
    status=[401, 403, 503],
)
_RECOVERY = 12.0
"""Seconds, times the scale, until the agent asks an STS again that answers again."""
_AT_ONCE, _CALM, _LONGEST = 40, 0.3, 1.0
"""Questions at once; and seconds, times the scale, after which the agent makes no more calls for them; and
at most, because an agent may bound the wait for a call."""
_PROMPT, _HELD, _STALLED = 3.0, 3.0, 5.0
"""Seconds, times the scale, for an answer beside a stalled STS; and, not scaled, for which STS stalls at
least, and at most: half of `sts.timeout` (4.4)."""
_READER = {
    "Arn": "arn:aws:sts::111111111111:assumed-role/reader/mallory",
    "UserId": "AROAQABCDEFGHIJKLMNOP:mallory",
    "Account": "111111111111",
}


def _disbelieved(here: benches.Bench, what: str, **recipe: Any) -> None:  # noqa: ANN401 - recipes hold anything
    """Ask with credentials that STS would refuse, until the agent asks STS; it must believe none of them."""
    before = here.sts_calls()
    deadline = time.monotonic() + here.target.seconds(_RECOVERY)
    while here.sts_calls() == before:
        forged = here.credential(here.reader, **{"secret": "wrong", "expires": _next(), **recipe})
        here.expect(what, forged, _NOT_BELIEVED)
        if time.monotonic() > deadline:
            raise Untestable(f"{what}: the agent did not ask STS for {_RECOVERY:g} s")


_count = itertools.cycle(range(1, 900))


def _next() -> int:
    """Return another `X-Amz-Expires` each time, so that no cache knows the credential.

    They repeat only in a process that plays for long.
    """
    return next(_count)


def _response(result: dict[str, Any], **beside: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"GetCallerIdentityResponse": {"GetCallerIdentityResult": result, **beside}}


_SHAPES: dict[str, Any] = {
    "the result alone": _READER,
    "the result at the top": {"GetCallerIdentityResult": _READER},
    "a response within something": {"Error": _response(_READER)},
    "a response in a list": [_response(_READER)],
    "a result in a list": _response([_READER]),  # type: ignore[arg-type]
    "no account": _response({name: text for name, text in _READER.items() if name != "Account"}),
    "no user id": _response({name: text for name, text in _READER.items() if name != "UserId"}),
    "a number for the account": _response({**_READER, "Account": 111111111111}),
    "another action's answer": {"AssumeRoleResponse": {"AssumeRoleResult": {"AssumedRoleUser": _READER}}},
    "the result of another action": {"AssumeRoleResponse": {"GetCallerIdentityResult": _READER}},
    "members in small letters": {
        "getcalleridentityresponse": {
            "getcalleridentityresult": {name.lower(): text for name, text in _READER.items()}
        }
    },
    "another result of the action": {"GetCallerIdentityResponse": {"AssumeRoleResult": _READER}},
}
_XML_ALONE = {"a number for the account": _response({**_READER, "Account": {"Id": "111111111111"}})}
"""XML has no numbers, so another fault stands there."""


def _xml(shape: Any, space: str = ' xmlns="https://sts.amazonaws.com/doc/2011-06-15/"') -> str:  # noqa: ANN401 - JSON
    """Write the shape as STS does for callers that do not accept JSON, its root in STS's namespace."""
    if isinstance(shape, list):
        return "".join(f"<member>{_xml(one, space)}</member>" for one in shape)
    if not isinstance(shape, dict):
        return str(shape)
    return "".join(f"<{key}{space}>{_xml(one, '')}</{key}>" for key, one in shape.items())


_GOOD = _response(_READER, ResponseMetadata={"RequestId": "x"})
_OTHER = {**_READER, "Arn": "arn:aws:sts::111111111111:assumed-role/other/mallory"}
_SEVERAL = [{"GetCallerIdentityResult": result} for result in (_READER, _OTHER, _READER)]
_TEXTS: dict[str, str] = {
    "a page": f"<html><body>{json.dumps(_response(_READER))}</body></html>",
    "two answers": json.dumps(_response(_READER)) * 2,
    "several results": json.dumps({"GetCallerIdentityResponse": _SEVERAL})
    .translate(str.maketrans("", "", "[]"))
    .replace("}}, {", "}, "),
    "a member twice": json.dumps(_response(_READER)).replace('"Account"', '"Arn": "x", "Account"'),
    "XML called JSON": "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>"
    + _READER["Arn"]
    + "</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>",
    "nothing": "",
}
_XML_TEXTS = {
    "a page": f"<html><body>{_xml(_GOOD)}</body></html>",
    "two answers": _xml(_GOOD) * 2,
    "several results": _xml({"GetCallerIdentityResponse": "".join(_xml(one, "") for one in _SEVERAL)}),
    "a member twice": _xml(_GOOD).replace("<Account>", "<Arn>x</Arn><Account>"),
    "XML called JSON": json.dumps(_response({"Arn": _READER["Arn"]})),
    "nothing": " ",
}


_JSON = {"Content-Type": "application/json"}
_NOBODY = _response({**_READER, "Arn": "nobody"})
_FAILURE, _PAGE = '{"Error": {"Code": "InternalFailure"}}', "<html><body>Forbidden</body></html>"
_NO_VERDICTS: dict[str, tuple[dict[str, Any], Expectation]] = {
    "a 400 Throttling": ({"kind": "throttle"}, _TROUBLE),
    "a 400 ThrottlingException": ({"kind": "throttle", "body": "ThrottlingException"}, _TROUBLE),
    "a 429": ({"kind": "throttle", "status": 429, "body": "TooManyRequestsException"}, _TROUBLE),
    "a 503": ({"kind": "status", "status": 503, "body": ""}, _TROUBLE),
    "a 500 with a code": ({"kind": "status", "status": 500, "body": _FAILURE, "headers": _JSON}, _TROUBLE),
    "a 504 with a code": ({"kind": "status", "status": 504, "body": _FAILURE, "headers": _JSON}, _TROUBLE),
    "a 302": ({"kind": "status", "status": 302, "body": ""}, _NOT_BELIEVED),
    "a 404 of a proxy": ({"kind": "status", "status": 404, "body": _PAGE}, _NOT_BELIEVED),
    "a 403 of a proxy": ({"kind": "status", "status": 403, "body": _PAGE}, _NOT_BELIEVED),
    "a 200 of a proxy": ({"kind": "malformed", "body": _PAGE, "xml": _PAGE}, _NOT_BELIEVED),
    "an ARN without its parts": (
        {"kind": "malformed", "body": json.dumps(_NOBODY), "xml": _xml(_NOBODY)},
        _NOT_BELIEVED,
    ),
}
"""Answers in the place of STS's that say nothing of a credential: the fault, and what the agent answers."""


@check("identity.sts.answer", "STS-ANSWER-001", features={"sts"})
def answer(target: Target) -> None:
    """A forged answer of another shape, status or length is not believed.

    The credentials have a wrong secret; the forged answer says that they are the reader's.
    """
    with bench(target, WORLD, flow="forged") as here:
        bodies = {what: json.dumps(shape) for what, shape in _SHAPES.items()} | _TEXTS
        in_xml = {what: _xml(shape) for what, shape in (_SHAPES | _XML_ALONE).items()} | _XML_TEXTS
        for what, body in bodies.items():
            here.sts_fault("malformed", body=body, xml=in_xml[what])
            _disbelieved(here, what)
        for what, body in in_xml.items():  # whatever the agent accepts: what it does not ask for, it may read
            here.sts_fault("status", status=200, body=body, headers={"Content-Type": "text/xml"})
            _disbelieved(here, f"{what}, in XML")
        good = json.dumps(_GOOD)
        for status in (201, 203, 206, 400, 403, 500):
            here.sts_fault("status", status=status, body=good, xml=_xml(_GOOD), headers=_JSON)
            _disbelieved(here, f"status {status}")
        here.sts_clear()


@check("identity.sts.answer-parts", "STS-ANSWER-002", features={"sts"})
def answer_parts(target: Target) -> None:
    """An answer whose parts are malformed or disagree is not believed, and one without a role opens nothing.

    Its shape is that of STS.
    """
    arn = _READER["Arn"]
    with bench(target, WORLD, flow="parts") as here:
        for what, change in {
            "another account": {"Account": "222222222222"},
            "an account of 11 digits": {"Account": "11111111111"},
            "no account": {"Account": ""},
            "an ARN of another account": {"Account": "222222222222", "Arn": arn},
            "an ARN with more parts": {"Arn": f"{arn}/more"},
            "an ARN of another partition": {"Arn": arn.replace("arn:aws:", "arn:evil:")},
            "an ARN of another service": {"Arn": arn.replace(":sts:", ":s3:")},
            "an ARN with a line break": {"Arn": f"{arn}\n"},
            "an ARN without a session": {"Arn": arn.rpartition("/")[0]},
            "a user": {"Arn": "arn:aws:iam::111111111111:user/reader", "UserId": "AIDAQABCDEFGHIJKLMNOP"},
            "a federated user": {
                "Arn": "arn:aws:sts::111111111111:federated-user/reader",
                "UserId": "111111111111:reader",
            },
            "root": {"Arn": "arn:aws:iam::111111111111:root", "UserId": "111111111111"},
        }.items():
            here.sts_fault("forge", members={**_READER, **change})
            _disbelieved(here, what)
        here.sts_clear()


@check("identity.sts.answer-size", "STS-ANSWER-003", features={"sts"})
def answer_size(target: Target) -> None:
    """An answer of megabytes is not believed.

    It is STS's own in all but its length: two megabytes of white space follow.
    """
    with bench(target, WORLD, flow="large") as here:
        here.expect("before", here.credential(here.session()), ALLOWED)
        here.sts_fault(
            "malformed", body=json.dumps(_GOOD) + " " * (2 << 20), xml=_xml(_GOOD) + " " * (2 << 20)
        )
        text = here.credential(here.reader, expires=_next())
        here.expect("an answer of two megabytes to a sound credential", text, _TROUBLE)
        _disbelieved(here, "an answer of two megabytes")
        here.sts_fault("ended")
        _disbelieved(here, "an answer of two megabytes to a sound credential, without a length", secret="")
        here.sts_fault("malformed", body=json.dumps(_GOOD) + " ", xml=_xml(_GOOD) + " ")
        keys = here.session()
        here.expect("the same answer, short", here.credential(keys), ALLOWED, within=_RECOVERY)
        here.sts_clear()
        here.expect("the same credential", text, ALLOWED, within=_RECOVERY)


@check("identity.sts.throttled", "STS-THROTTLE-001", "STS-THROTTLE-002", features={"sts"})
def throttled(target: Target) -> None:
    """Throttling is 503 and forgotten: the same credential passes once STS answers.

    As a 400 Throttling, a 429 and a 503. So does a failure with a code of its own. The answer of a proxy
    before STS, and one of another shape, may be a rejection, but is not held against the credential either.
    Nor does any of them use up a credential that counts once.
    """
    with bench(target, WORLD, flow="throttled") as here:
        for what, (fault, answer) in _NO_VERDICTS.items():
            text = here.credential(here.reader, expires=_next())
            before = here.sts_calls()
            here.sts_fault(**fault)
            here.expect(what, text, answer)
            if here.sts_calls() == before:
                raise Untestable(f"{what}: the agent did not ask STS")
            here.sts_clear()
            here.expect(f"after {what}", text, ALLOWED, within=_RECOVERY)
    with bench(target, WORLD, flow="throttled-once") as here, here.asking():
        for what, (fault, _) in _NO_VERDICTS.items():
            text, before = here.credential(here.reader, expires=_next()), here.sts_calls()
            asked = [SpopQuestion(f"once, after {what}", iam_check(text, path="/orders/1"), ALLOW)]
            here.sts_fault(**fault)
            for _last in polls(here.seconds(_RECOVERY)):  # one worker alone: a signature counts once for all
                found = here.actions(asked)
                if here.sts_calls() > before:
                    here.sts_clear()
                if read(found[0]).get("allow"):
                    break
            here.sts_clear()
            here.judge(asked, found)


@check("identity.sts.backoff", "STS-THROTTLE-003", features={"sts"})
def backoff(target: Target) -> None:
    """While STS throttles, requests do not each become a call.

    Nor do those that waited for others when it began: many at once, of which some are asked, and throttled.
    """
    with bench(target, WORLD, flow="backoff") as here:
        keys = here.session()
        texts = [here.credential(keys, expires=seconds) for seconds in range(100, 160)]
        here.sts_fault("throttle")
        before, began = here.sts_calls(), time.monotonic()
        for text in texts:
            here.expect("a throttled question", text, _TROUBLE)
        elapsed, made = time.monotonic() - began, here.sts_calls() - before
        here.sts_clear()
        if made > len(texts) // 2:
            message = (
                f"{len(texts)} questions in {elapsed:.1f} s became {made} calls of an STS that throttles"
            )
            raise here.failed(message, expected="at most half as many")
        here.expect("afterwards", here.credential(keys), ALLOWED, within=_RECOVERY)
        _throttled_at_once(here)
        here.expect("afterwards", here.credential(keys, expires=61), ALLOWED, within=_RECOVERY)


def _throttled_at_once(here: benches.Bench) -> None:
    """Ask a worker at once from many addresses. STS lets the calls wait, and then throttles all."""
    keys, before, counted = here.session(), here.sts_calls(), f"{STS_ACTION}@{here.sts_host}"
    crowd = [
        (iam_check(here.credential(keys, expires=200 + n), path="/orders/1", src=f"192.0.2.{n}"), None)
        for n in range(_AT_ONCE)
    ]
    here.sts_fault("stall", status=429, body="")
    try:
        with here.asking(), ThreadPoolExecutor() as pool:
            ask = recording.carried(here.spread.askers()[0].actions_of)
            waiting = pool.submit(ask, crowd, window=_AT_ONCE)
            here.cloud.wait_for(counted, before + 1, here.seconds(_RECOVERY))
            with suppress(WaitTimeoutError):  # an agent may make all of them by now
                while (made := here.sts_calls()) < before + _AT_ONCE:
                    here.cloud.wait_for(counted, made + 1, min(_LONGEST, here.seconds(_CALM)))
            here.sts_fault("throttle")
            waiting.result()
            later = here.sts_calls() - made
    finally:
        here.sts_clear()
    if later > _AT_ONCE // 2:
        message = f"{later} of {_AT_ONCE} questions became calls after STS throttled the first"
        raise here.failed(message, expected="at most half of them")


@check("identity.sts.redirect", "STS-REDIRECT-001", features={"sts"})
def redirect(target: Target) -> None:
    """A redirect of STS is not followed, and opens nothing.

    Where it leads, a server confirms every caller.
    """
    with bench(target, WORLD, flow="redirected") as here:
        url = target.stage.urls["sts"]
        elsewhere = f"{STS_ACTION}@{url.partition('://')[2]}"
        # The fault stays: only this check asks under this name, perhaps for another agent before.
        here.cloud.fault(elsewhere, "forge", members=_READER)
        before = here.cloud.counters().get(elsewhere, 0)
        for status in (301, 302, 303, 307, 308):
            location = f"{url}/?Action={STS_ACTION}&Version=2011-06-15"
            here.sts_fault("redirect", status=status, location=location)
            _disbelieved(here, f"a redirect {status}")
        here.sts_clear()
        if here.cloud.counters().get(elsewhere, 0) > before:
            raise here.failed("the agent followed STS's redirect", expected="no second call")


@check("identity.sts.stalled", "STS-TIMEOUT-001", features={"sts"})
def stalled(target: Target) -> None:
    """A stalled STS holds up no other credential.

    Questions wait for STS; tokens, and credentials for another STS, are answered at once.
    """
    with bench(target, WORLD, flow="stalled") as here, bench(target, WORLD, flow="brisk") as other:
        keys, brisk = here.session(), other.session()
        texts = [here.credential(keys, expires=seconds) for seconds in range(100, 105)]
        here.sts_fault("stall")
        try:
            before = here.sts_calls()
            stuck = [Pending(here.another(), text) for text in texts]
            here.cloud.wait_for(f"{STS_ACTION}@{here.sts_host}", before + 1, here.seconds(10.0))
            for number in range(3):
                if not target.lacks(["oidc"]):
                    token = here.token("corp", key="ES256", sub=f"guest-{number}")
                    here.expect("a token beside a stalled STS", token, ALLOWED, prompt=_PROMPT)
                text = other.credential(brisk, expires=100 + number)
                other.expect("another STS beside a stalled one", text, ALLOWED, prompt=_PROMPT)
        finally:
            here.sts_clear()
        for question in stuck:
            question.answer(target.seconds(15.0))


@check("identity.sts.left", "STS-SHARED-001", features={"sts"})
def left(target: Target) -> None:
    """A client that goes away takes no answer of STS, which comes late, from another that waits for the same.

    To each worker two clients send one credential, and the first resets its connection while STS stalls.
    """
    with bench(target, WORLD, flow="left") as here, ThreadPoolExecutor() as pool, here.asking():
        text = here.credential(here.reader)
        same = SpopQuestion("a client that stays", iam_check(text, path="/orders/1"), ALLOW)
        stays, asked = here.spread.askers(), [(same.check, None)]
        before, began = here.sts_calls(), time.time()
        here.sts_fault("stall")
        try:
            with Spread(here.world.agent, here.loan.workers, here.seconds(_RECOVERY)) as leaving:
                goes = leaving.askers()
                for one in goes:
                    pool.submit(one.actions_of, asked)
                here.cloud.wait_for(f"{STS_ACTION}@{here.sts_host}", before + 1, here.seconds(_RECOVERY))
                waiting = [pool.submit(recording.carried(one.actions_of), asked) for one in stays]
                here.expect("a question beside them", "", refused("no_credentials"))
                for one in goes:
                    one.close(reset=True)
            rest(max(0.0, began + _HELD - time.time()))  # `sts.timeout` is not stretched
            here.in_time(began + _STALLED, "leaving before STS answers")
            here.sts_clear()
            for each in waiting:
                here.judge([same], each.result())
        finally:
            here.sts_clear()


@check("identity.sts.stalled-proxy", "STS-TIMEOUT-001", lane="gate", features={"sts"})
def stalled_proxy(target: Target) -> None:
    """Through HAProxy, a credential whose STS stalls is refused with 503.

    The proxy or the agent may give up first.
    """
    with bench(target, WORLD, flow="stalled-proxy") as here:
        keys = here.session()
        here.expect("before", here.credential(keys), ALLOWED, within=_RECOVERY)
        before, text = here.sts_calls(), here.credential(keys, expires=_next())
        here.sts_fault("stall")
        try:
            here.expect("a stalled STS", text, Expectation(status=503, allow=False, backend=""))
            if here.sts_calls() == before:
                raise Untestable("the agent did not ask STS")
        finally:
            here.sts_clear()
