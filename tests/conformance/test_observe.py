"""Expectations are compared with observations."""

from dataclasses import replace

import pytest

from iamroles_scenarios.checks.proxy import asked
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.http import Answer
from iamroles_scenarios.engine.observation import Observation, describe, mismatches
from iamroles_scenarios.engine.players import observed

_ALLOWED = Observation(
    status=200,
    allow=True,
    error="",
    backend="orders-ro",
    challenge=False,
    tags={"role": "r", "expires": "100"},
    headers=(("x-iam-role", "r"), ("accept", "*/*")),
    path="/orders/1",
)
_TWICE = replace(_ALLOWED, headers=(("x_iam_role", "admin"), ("x-iam-role", "r")))
_REFUSED = Observation(status=401, allow=False, error="invalid_token", backend="", reason="token_expired")
_TALKATIVE = replace(_REFUSED, talkative=("error_description",))


def _differ(seen, **expected):
    return mismatches(Expectation.model_validate(expected), seen, {"t": 100})


@pytest.mark.parametrize(
    "expected",
    [
        {"status": 200, "allow": True, "backend": "orders-ro", "role": "r", "expires": "t"},
        {"status": [200, 204]},
        {"backend": {"one_of": ["x", "orders-ro"]}},
        {"headers": {"x-iam-role": ["r"]}, "absent": ["authorization"], "only": ["x-iam-role"]},
        {"challenge": False, "path": "/orders/1"},
    ],
)
def test_what_fits(expected):
    assert _differ(_ALLOWED, **expected) == []


@pytest.mark.parametrize(
    ("seen", "expected", "said"),
    [
        (_ALLOWED, {"status": 401}, "status: expected 401, got 200"),
        (_ALLOWED, {"allow": False}, "allow: expected False, got True"),
        (_ALLOWED, {"backend": ""}, "backend: expected '', got 'orders-ro'"),
        (_ALLOWED, {"reason": "no_grant"}, "HAProxy's log has no line"),
        (_ALLOWED, {"challenge": True}, "expected present, is absent"),
        (_ALLOWED, {"headers": {"x-iam-role": ["r", "r"]}}, "expected ['r', 'r'], got ['r']"),
        (_ALLOWED, {"absent": ["x_iam-role"]}, "must not reach the backend"),
        (_ALLOWED, {"only": ["x-iam-rule"]}, "identity headers ['x-iam-role'] reached"),
        (_ALLOWED, {"path": "/orders"}, "path at the backend"),
        (_REFUSED, {"reason": {"one_of": ["key_unknown", "no_grant"]}}, "'key_unknown' or 'no_grant'"),
        (_REFUSED, {"error": ""}, "error: expected '', got 'invalid_token'"),
        (_REFUSED, {"expires": "t"}, "expires: expected '100', got ''"),
        (_TALKATIVE, {"error": "invalid_token"}, "says more than it must: error_description"),
        (_TWICE, {"only": ["x-iam-role"]}, "['x_iam_role'] reached the backend"),
    ],
)
def test_what_does_not(seen, expected, said):
    found = _differ(seen, **expected)

    assert len(found) == 1 or "no line" in said
    assert any(said in sentence for sentence in found), found


def test_an_expectation_is_described_whole():
    expected = {"status": 401, "reason": {"one_of": ["a", "b"]}, "within": "5s"}

    told = describe(Expectation.model_validate(expected))
    assert told == "reason = 'a' or 'b', status = 401 (within 5 s)"


@pytest.mark.parametrize(
    ("method", "known"), [("PURGE", False), ("get", False), ("GET", True), ("PATCH", True)]
)
def test_a_proxy_may_refuse_a_method_that_it_does_not_know_with_501(method, known):
    seen = observed(Answer(501, "", (), b"", 1, 0.0), f"{method} / HTTP/1.1\r\n".encode(), [])

    assert bool(_differ(seen, status=403, allow=False)) is known
    assert asked._right(answers.expected("no_grant"), seen) is not known
