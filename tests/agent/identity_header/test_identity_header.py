"""The signed identity header: keys that rotate unnoticed, tokens that a server can verify, cheap verdicts."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import InvalidClaimError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from spop_transcript import YES

from iamroles_agent.identity_header import KeyRing, SharedRing, Signer, secrets_to_bytes
from iamroles_agent.spop.actions import decode, encode_verdict, shorten

NOW = 1_800_000_000
DAY = 86400.0
ISSUER = "https://gate.example.com"
RING = KeyRing.first(NOW, DAY)


def verified(token, jwks, now, *, audience="orders", issuer=ISSUER):
    """The claims, as a server reads them: another library, the published keys, the server's own clock."""
    claims = jwt.decode(token, KeySet.import_key_set(jwks), algorithms=["ES256"]).claims
    needed = {name: {"essential": True} for name in ("exp", "iat", "sub")}
    fixed = {"aud": {"value": audience, "essential": True}, "iss": {"value": issuer, "essential": True}}
    JWTClaimsRegistry(now=now, leeway=0, **needed, **fixed).validate(claims)
    return claims


# --- the ring -------------------------------------------------------------------------------------------


def test_the_first_ring_signs_at_once_and_publishes_what_comes_next():
    assert [key.since for key in RING.keys] == [NOW, NOW + DAY]
    assert RING.signing(NOW) is RING.keys[0]
    assert RING.signing(NOW + DAY - 1) is RING.keys[0]
    assert RING.signing(NOW + DAY) is RING.keys[1]
    assert RING.at(NOW + DAY - 1) is RING
    assert RING.due == NOW + DAY


def test_a_published_key_says_nothing_of_the_private_one():
    for key in RING.jwks()["keys"]:
        assert sorted(key) == ["alg", "crv", "kid", "kty", "use", "x", "y"]
    assert "PRIVATE" not in repr(RING)
    assert len({key["kid"] for key in RING.jwks()["keys"]}) == 2


@given(st.floats(120.0, 10 * DAY), st.lists(st.floats(0.0, 30 * DAY), min_size=1, max_size=8))
def test_a_key_signs_only_after_a_lead_and_is_published_until_its_tokens_are_dead(rotate, pauses):
    """However late the keeper of the ring looks at it: what signs was published long before."""
    ring, now = KeyRing.first(NOW, rotate), float(NOW)
    published = dict.fromkeys((key.kid for key in ring.keys), now)
    born = ring.keys[0].kid
    last_signed = {ring.signing(now).kid: now}
    for pause in pauses:
        now += pause
        signing = ring.signing(now)
        assert signing.kid == born or now - published[signing.kid] >= min(rotate, 3600.0) - 1e-3
        last_signed[signing.kid] = now
        later = ring.at(now)
        assert later.signing(now).kid == signing.kid
        assert later.due > now
        assert later.at(now) is later
        assert 2 <= len(later.keys) <= 3
        for kid, when in last_signed.items():
            assert now >= when + 60 or kid in {key.kid for key in later.keys}
        for key in later.keys:
            published.setdefault(key.kid, now)
        ring = later


def test_a_shorter_rotate_counts_from_the_next_start():
    kept, now = KeyRing.first(NOW, 30 * DAY).to_bytes(), NOW + DAY
    ring = KeyRing.from_bytes(kept, 3600.0).at(now)

    signing = [ring.keys.index(ring.signing(now + later)) for later in (0, 3599, 3600)]
    assert signing == [0, 0, 1], "the next key was published for `rotate` at least"
    assert ring.at(now + 1800) is ring
    ahead = KeyRing.from_bytes(kept, 30 * DAY)
    assert ahead.at(NOW - DAY) is ahead, "a clock that was set back moves no key"


def test_a_clock_that_was_ahead_stops_no_rotation():
    ring, signed = KeyRing.first(NOW + 3650 * DAY, DAY), []
    for day in (3653, 3658, *range(8)):
        ring = ring.at(NOW + day * DAY)
        signed.append(ring.signing(NOW + day * DAY).kid)

    assert len(set(signed[2:])) == 7, "each signs for a day; the first for one more, until the next is known"
    assert ring.at(NOW + 7 * DAY) is ring


def test_a_ring_outlives_the_agent():
    again = KeyRing.from_bytes(RING.to_bytes(), DAY)

    assert again.jwks() == RING.jwks()
    verified(Signer(again, ISSUER).sign(YES, NOW).token, RING.jwks(), NOW)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"version":2,"keys":[]}', b'{"version":1,"keys":[]}'])
def test_what_is_no_ring_is_said_without_its_text(text):
    with pytest.raises(ValueError, match="not the keys of the identity header"):
        KeyRing.from_bytes(text, DAY)


def test_a_broken_key_is_not_repeated():
    document = json.loads(RING.to_bytes())
    document["keys"][0]["private"] = document["keys"][0]["private"][:80]

    with pytest.raises(ValueError, match="not the keys") as caught:
        KeyRing.from_bytes(json.dumps(document).encode(), DAY)

    assert "PRIVATE" not in str(caught.value)


# --- the ring that agents share --------------------------------------------------------------------------

ONE, OTHER = b"1" * 32, b"2" * 32


def kids(jwks):
    return {key["kid"] for key in jwks["keys"]}


@given(st.floats(4.0, 10 * DAY), st.floats(0.0, 4e9), st.floats(0.0, 0.999), st.sampled_from(range(3)))
def test_whoever_has_the_secret_publishes_what_the_others_sign_with(rotate, now, apart, step):
    """Clocks less than `rotate` apart; and one agent a step further in replacing the secret."""
    steps = [(ONE,), (ONE, OTHER), (OTHER, ONE), (OTHER,)]
    early, late = (SharedRing(secrets, ISSUER, rotate) for secrets in (steps[step], steps[step + 1]))
    shown = kids(late.jwks(now + apart * rotate))

    assert {early.signing(now).kid} <= kids(early.jwks(now))
    assert early.signing(now).kid in shown
    assert late.signing(now + apart * rotate).kid in kids(early.jwks(now))


def test_a_derived_key_says_nothing_of_the_secret_and_is_another_for_each_period_gate_and_rotate():
    ring = SharedRing((ONE,), ISSUER, DAY)
    others = [
        SharedRing((OTHER,), ISSUER, DAY),
        SharedRing((ONE,), "https://b", DAY),
        SharedRing((ONE,), ISSUER, 5.0),
    ]
    signing = {
        ring.signing(NOW).kid,
        ring.signing(NOW + DAY).kid,
        *(each.signing(NOW).kid for each in others),
    }

    assert len(signing) == 5
    assert all(sorted(key) == ["alg", "crv", "kid", "kty", "use", "x", "y"] for key in ring.jwks(NOW)["keys"])
    again = SharedRing.from_bytes(secrets_to_bytes((ONE,)), ISSUER, DAY)
    verified(Signer(again, ISSUER).sign(YES, NOW).token, ring.jwks(NOW), NOW)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'["s3cret"]', b"[7]"])
def test_what_are_no_secrets_is_said_without_its_text(text):
    with pytest.raises(ValueError, match="not the secrets of the identity header") as caught:
        SharedRing.from_bytes(text, ISSUER, DAY)

    assert "s3cret" not in str(caught.value)


# --- the token ------------------------------------------------------------------------------------------


def test_a_token_says_who_in_which_role_for_which_backend():
    token = Signer(RING, ISSUER).sign(YES, NOW + 0.9).token

    header = {"alg": "ES256", "kid": RING.keys[0].kid, "typ": "iam-identity+jwt"}
    assert jwt.decode(token, KeySet.import_key_set(RING.jwks())).header == header
    assert verified(token, RING.jwks(), NOW) == {
        "iss": ISSUER,
        "aud": "orders",
        "sub": "alice",
        "iat": NOW,
        "exp": NOW + 60,
        "role": YES.role,
        "session": "s-1",
        "idp": "corp",
    }


def test_a_token_for_one_backend_is_none_for_another():
    with pytest.raises(InvalidClaimError, match="aud"):
        verified(Signer(RING, ISSUER).sign(YES, NOW).token, RING.jwks(), NOW, audience="export")


@given(st.integers(1, 100_000), st.integers(2, 60))
def test_a_token_never_outlives_the_access_or_a_minute(left, lifetime):
    ring = KeyRing((RING.keys[0],), DAY)
    signer = Signer(ring, ISSUER, lifetime)
    signed = signer.sign(replace(YES, expires=NOW + left), NOW)
    claims = verified(signed.token, ring.jwks(), NOW)

    assert claims["exp"] == NOW + min(left, lifetime)
    assert NOW < signed.fresh_until <= max(NOW + 1, claims["exp"])
    assert claims["exp"] - (signed.fresh_until - 1) >= (claims["exp"] - NOW) / 2


def test_one_signature_serves_all_requests_of_a_caller_to_a_backend_for_half_its_life():
    signer = Signer(RING, ISSUER)
    first = signer.sign(YES, NOW)

    assert signer.sign(replace(YES, rule="R2"), NOW + 29.9).token is first.token
    assert signer.sign(YES, NOW + 30).token != first.token
    set_back = signer.sign(YES, NOW + 20).token
    assert verified(set_back, RING.jwks(), NOW + 20)["iat"] == NOW + 20
    for name in ("principal", "role", "backend", "session", "issuer"):
        assert signer.sign(replace(YES, **{name: "another"}), NOW).token != first.token


def test_the_memory_is_bounded():
    signer = Signer(RING, ISSUER)
    for number in range(9000):
        signer._young[("p", "", "", "", str(number), None)] = signer._young.get("x") or ("t", NOW)
        if len(signer._young) >= 4096:
            signer.sign(YES, NOW)

    assert len(signer._young) + len(signer._old) <= 8193


# --- the verdict that holds it --------------------------------------------------------------------------


def test_the_identity_is_a_variable_before_the_verdict():
    actions = list(decode(encode_verdict(YES, "a.b.c")))

    assert [action.name for action in actions][-2:] == ["identity", "allow"]
    assert actions[-2].value == b"a.b.c"
    assert "identity" not in [action.name for action in decode(encode_verdict(YES))]


def test_where_a_frame_is_too_small_the_identity_goes_first_and_the_verdict_stays():
    whole = encode_verdict(YES, "x" * 600)
    kept = {action.name: action for action in decode(shorten(whole, len(whole) - 1))}

    assert kept["identity"].kind is None
    assert kept["principal"].value == b"alice"
    assert kept["allow"].value is True
