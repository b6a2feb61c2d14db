"""The published keys of the signed identity, as the judge fetches them."""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import jwt
import pytest
from tokens_support import EC_KEY, Server, public_jwk

from iamroles_scenarios.base.errors import TooSlow
from iamroles_scenarios.checks.identity import signed
from iamroles_scenarios.engine.key_sets import Answered, KeySets


def _signed(at):
    """An answer's identity, signed by the key `one` at a moment."""
    claims = {"iss": "https://gate.example.com", "aud": "orders", "sub": "ann", "role": "r", "session": ""}
    claims |= {"idp": "corp", "iat": at // 10**9, "exp": at // 10**9 + 5}
    token = jwt.encode(claims, EC_KEY, "ES256", {"kid": "one", "typ": "iam-identity+jwt"})
    tags = {"principal": "ann", "role": "r", "issuer": "corp"}
    return SimpleNamespace(allow=True, headers=[("x-iam-identity", token)], backend="orders", tags=tags)


@pytest.mark.parametrize("dead", [0, -1], ids=["first", "last"])
def test_the_address_of_a_dead_worker_hides_no_other(dead):
    servers = sorted((Server() for _ in range(2)), key=lambda server: server.url)
    for server in servers:
        server.json("/identity/jwks", {"keys": [public_jwk(EC_KEY, "one")]})
    lines = [f"keys at {server.url}/identity/jwks" for server in servers]
    servers.pop(dead).close()
    agent = SimpleNamespace(spop_address="127.0.0.1:1", lines=lambda: lines)
    sets = KeySets([agent], 10.0)
    at = time.time_ns()

    with sets.fetched():
        answer = Answered(_signed(at), at, time.time_ns())
    servers[0].close()

    assert sets.unverified(answer) == ""
    assert sets.signed == {"one"}
    assert "refused" in sets.fault


@pytest.mark.parametrize(
    ("ago", "why", "unseen"), [(0, "its key 'one' is not among those published", 0), (11, "", 1)]
)
def test_a_set_that_a_late_judge_fetched_counts_for_nothing(ago, why, unseen):
    server = Server()
    server.json("/identity/jwks", {"keys": [public_jwk(EC_KEY, "two")]})
    agent = SimpleNamespace(spop_address="127.0.0.1:1", lines=lambda: [f"keys at {server.url}/identity/jwks"])
    sets = KeySets([agent], 10.0)
    at = time.time_ns() - ago * 10**9

    with sets.fetched():
        answer = Answered(_signed(at), at, time.time_ns())
    server.close()

    found = sets.unverified(answer)
    assert (found[: len(why)], bool(found), sets.unseen) == (why, bool(why), unseen)
    with pytest.raises(TooSlow, match="by 0 verified, not by 1"):
        sets.must_have_verified(1)


def test_identities_for_which_no_keys_were_fetched_prove_nothing(monkeypatch):
    here, sets = SimpleNamespace(now=int, seconds=float, token=lambda **_: ""), KeySets([], 10.0)
    sets.fault, at = "", time.time_ns()
    monkeypatch.setattr(signed, "_signed", lambda _target: nullcontext((here, sets)))
    monkeypatch.setattr(signed, "_ask", lambda *_: Answered(_signed(at), at, at))

    with pytest.raises(TooSlow, match="no keys in time for 10 identities"):
        signed.fields(None)
