"""The signed identity end to end: a real token, the real agent, HAProxy, a backend that verifies it."""

import json
import re
import time
import urllib.request
from contextlib import closing

import jwt
import pytest

from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent

GATE = "https://gate.example.com"


@pytest.fixture(scope="module")
def here():
    """A bench of a world whose agent signs identities, in two workers."""
    agent, override = reference_agent(), {"agent": {"workers": 2}, "metrics": {"listen": "127.0.0.1:0"}}
    override["identity_header"] = {"issuer": GATE}
    with (
        open_stage("processes") as stage,
        closing(Worlds(stage, agent)) as worlds,
        bench(Target("gate", stage, agent, worlds), "orders", "identity", **override) as found,
    ):
        yield found


def published(here):
    """The keys of each worker."""
    places = re.findall(r"http://(\S+)/metrics", here.world.agent.logs())
    assert len(places) == 2
    for loan in places:
        with urllib.request.urlopen(f"http://{loan}/identity/jwks", timeout=5) as answer:
            yield json.load(answer)


def identity(seen):
    (value,) = [value for name, value in seen.headers if name == "x-iam-identity"]
    return value


def test_the_backend_can_verify_who_acts_and_that_it_is_meant(here):
    seen = here.ask(here.token(sub="alice"), headers=[["X-IAM-Identity", "forged"]])
    one, two = published(here)
    assert one == two
    token = identity(seen)
    key = jwt.PyJWKSet.from_dict(one)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="orders-ro", issuer=GATE)

    assert (claims["sub"], claims["role"]) == ("alice", "arn:aws:iam::111111111111:role/reader")
    assert claims["exp"] - claims["iat"] <= 60
    assert claims["exp"] > time.time()
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, key, algorithms=["ES256"], audience="export", issuer=GATE)


def test_a_remembered_verdict_carries_the_token_again(here):
    token = here.token(sub="bob")
    found = {identity(here.ask(token)) for _ in range(12)}

    assert 1 <= len(found) <= 2  # one for each worker that was asked


def test_a_refusal_has_none(here):
    assert here.ask(here.token(sub="alice"), path="/elsewhere").status == 403
