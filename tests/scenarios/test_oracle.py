"""The oracle: right on the worked examples, deaf to order, and its comparison blind to nothing."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iamroles_scenarios.checks.oracle.answer import said, unlike, unlike_seen
from iamroles_scenarios.checks.oracle.campaign import CASES_PER_WORLD, numbers_for
from iamroles_scenarios.checks.oracle.generate import draw, may_conflict, shuffled
from iamroles_scenarios.checks.oracle.judge import Outcome, arn, judge, load_error, seconds, segments
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.engine.observation import Observation

NOW = 1_800_000_000
ORDERS = policy_of(WorldSpec(policy="orders"))
LANE = policy_of(WorldSpec(policy="policy"))


def role(name, account="111111111111"):
    return f"arn:aws:iam::{account}:role/{name}"


def decide(policy, roles, method="GET", path="/orders", *, asked=None, **claims):
    request = {"method": method, "host": "api.example.com", "path": path, "src": "127.0.0.1", "role": asked}
    claims = {"roles": roles, "iat": NOW - 60, "exp": NOW + 300} | claims
    return judge(policy, claims, request, NOW)


READER, WRITER = role("reader"), role("writer")


def test_a_path_of_two_readings_is_refused_whoever_asks():
    assert decide(ORDERS, [READER], path="/orders/%2e%2e/export").reason == "path_ambiguous"


def test_the_last_worked_example_does_not_load():
    r5 = {"id": "R5", "roles": ["writer"], "methods": ["GET"], "path": "/orders", "backend": "orders-rw"}

    def error(multi_role, **changes):
        return load_error(ORDERS | {"multi_role": multi_role, "grants": [*ORDERS["grants"], r5 | changes]})

    assert error("deny") is None
    assert error("union") == ("R1", "R5")
    assert error("union", shadow=True) is None


def test_limits_scopes_and_preference():
    union = LANE | {"multi_role": "union"}
    both = [role("brief"), role("briefer")]
    issuers = {issuer["name"]: LANE | {"issuers": [issuer]} for issuer in LANE["issuers"]}

    assert decide(LANE, [role("brief")], path="/timed", exp=NOW + 900).expires == NOW - 60 + 600
    assert decide(union, both, path="/timed", exp=NOW + 900).expires == NOW - 60 + 300
    assert decide(LANE, [role("brief")], path="/timed", iat=NOW - 600).reason == "token_expired"
    agents, assistant = issuers["agents"], [role("assistant")]
    assert decide(agents, assistant, path="/assist/notes", scope="notes:read").allow
    for path, claims in (("/assist/mail", {"scope": "notes:read"}), ("/assist", {})):
        assert decide(agents, assistant, path=path, **claims).reason == "scope_insufficient"
    preferring = decide(issuers["corp"], [READER, WRITER], path="/orders/1", preferred_role=READER)
    assert preferring.roles == {READER}
    assert decide(issuers["corp"], [READER, WRITER], preferred_role=role("admin")).reason == "ambiguous_role"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(("/", []), ("/orders/", ["orders"]), ("/%6Frders/a%2eb", ["orders", "a.b"])),
        *(("/caf%c3%a9", ["caf%C3%A9"]), ("/100%25", ["100%25"]), ("/%25%32%65", None), ("/%252e", None)),
        *(("/a//b", None), ("/..", None), ("/%2E", None), ("/a;b", None), ("", None)),
    ],
)
def test_segments(path, expected):
    assert segments(path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((role("x/y/reader"), READER), ("arn:aws:sts::111111111111:assumed-role/reader/s", READER)),
        ("arn:aws:sts::111111111111:assumed-role/reader", None),
        *(("arn:aws:iam::111111111111:user/reader", None), ("arn:aws:iam::1:role/reader", None)),
        ("reader", None),
    ],
)
def test_arns(text, expected):
    assert arn(text) == expected


def test_durations():
    assert [seconds(text) for text in ("90s", "15m", "1h", "500ms")] == [90, 900, 3600, 0.5]


def _judged(played):
    for case in played.cases:
        claims = {**case.claims, "iat": NOW + case.claims["iat"], "exp": NOW + case.claims["exp"]}
        yield judge(played.policy, claims, case.request, NOW)


@given(seed=st.integers(0, 10_000), number=st.integers(0, 6), turn=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_order_changes_nothing(seed, number, turn):
    played = draw(seed, number, 20)

    assert list(_judged(shuffled(played, turn))) == list(_judged(played))


@given(seed=st.integers(0, 10_000), number=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_a_world_is_the_same_again_and_loads_as_promised(seed, number):
    once, again = draw(seed, number, 5), draw(seed, number, 30)

    assert (once.policy, once.cases) == (again.policy, again.cases[:5])
    if not may_conflict(number):
        assert once.loads


def _drawn(cases):
    return [draw(1, number, cases) for number in range(24)]


def test_worlds_are_worth_asking():
    """Every reason that the oracle knows comes up, and enough is allowed: else agreement proves little."""
    outcomes = [outcome for played in _drawn(60) if played.loads for outcome in _judged(played)]
    reasons = {outcome.reason for outcome in outcomes}

    assert reasons == {
        "", "no_grant", "denied_by_rule", "scope_insufficient", "ambiguous_role", "role_not_in_token",
        "role_missing", "role_malformed", "path_ambiguous", "token_expired",
    }  # fmt: skip
    assert sum(outcome.allow for outcome in outcomes) > len(outcomes) / 10
    assert sum(not played.loads for played in _drawn(0)) >= 2


def test_enough_worlds_are_played():
    for cases in (1, 60, 3000, 20_000):
        numbers = numbers_for(cases)
        assert sum(not may_conflict(number) for number in numbers) * CASES_PER_WORLD >= cases


ALLOWED = Outcome("", frozenset({"R1"}), "orders-ro", frozenset({READER}), NOW)
ANSWER = {"allow": True, "status": 200, "rule": "R1", "backend": "orders-ro", "role": READER, "expires": NOW}
DENIED = Outcome("denied_by_rule", frozenset({"D1", "D2"}))
REFUSAL = {
    "allow": False, "status": 403, "reason": "denied_by_rule", "error": "insufficient_scope", "rule": "D2",
}  # fmt: skip


def test_a_right_answer_has_no_unlike():
    assert unlike(ALLOWED, ANSWER) == []
    assert unlike(DENIED, REFUSAL) == unlike(DENIED, REFUSAL | {"error": ""}) == []


@pytest.mark.parametrize(
    ("expected", "answer", "name", "value"),
    [
        *((ALLOWED, ANSWER, name, value) for name, value in {
            "allow": False, "status": 403, "rule": "R2", "backend": "export", "role": WRITER,
            "expires": NOW + 1, "reason": "no_grant", "error": "invalid_token",
        }.items()),
        *((ALLOWED, ANSWER, name, value) for name, value in {
            "allow": 1, "status": "200", "expires": str(NOW),
        }.items()),
        *((DENIED, REFUSAL, name, value) for name, value in {
            "allow": True, "status": 401, "reason": "no_grant", "error": "invalid_token", "rule": "D3",
            "backend": "x",
        }.items()),
    ],
)  # fmt: skip
def test_each_wrong_variable_is_seen(expected, answer, name, value):
    (difference,) = unlike(expected, answer | {name: value})

    assert difference.startswith(f"{name}: ")


def test_a_missing_variable_is_seen():
    for name in ANSWER:
        assert unlike(ALLOWED, {key: value for key, value in ANSWER.items() if key != name})


def test_what_the_proxy_shows_is_compared_too():
    tags = {"rule": "R1", "role": READER, "expires": str(NOW)}
    seen = Observation(status=200, allow=True, error="", backend="orders-ro", tags=tags)

    assert unlike_seen(ALLOWED, seen) == []
    assert unlike_seen(ALLOWED, replace(seen, status=501, allow=False, unknown=True)) == []
    for wrong in (
        replace(seen, status=403),
        replace(seen, allow=False),
        replace(seen, backend="export"),
        *(replace(seen, tags=tags | {name: "other"}) for name in tags),
    ):
        assert len(unlike_seen(ALLOWED, wrong)) == 1


def test_outcomes_are_said_in_words():
    assert re.fullmatch(r"allowed by 'R1' to orders-ro, role '.*reader', expires \d+", said(ALLOWED))
    assert said(DENIED) == "refused: denied_by_rule, rule 'D1' or 'D2'"
