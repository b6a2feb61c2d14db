"""No log and no report holds a credential: what is known of those that were made, and how it is found."""

import time
from dataclasses import replace

import pytest

from iamroles_scenarios.base import sent
from iamroles_scenarios.base.errors import Evidence
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.engine.verdicts import reported
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import b64url_decode
from iamroles_scenarios.mock.presign import SessionKeys, credential
from iamroles_scenarios.stage.reference import reference_agent

KEYS = SessionKeys(
    "ASIAEXAMPLEEXAMPLE12", "aB3/" * 10, "FQoGZXIvYXdz" + "q7Rt2Lm9xKpWz4" * 3 + "+/" + "Wz4Kq7Rt2Lm9xKp" * 3
)
KEY = SigningKey.generate("ES256", kid="one")


def token(**recipe):
    return mint({"roles": ["reader"], **recipe}, [KEY], time.time(), "https://idp.example")


def presigned(**recipe):
    return credential(recipe, KEYS, time.time(), binding_value="edge-a")


def url():
    return b64url_decode(presigned().removeprefix("iam-sts-v1.")).decode()


@pytest.mark.parametrize(
    "leak",
    [
        token,
        lambda: token().rpartition(".")[2],
        lambda: token()[-32:],
        lambda: token(suffix=" x"),
        lambda: token(claims={"iss": "https://unknown"}).replace(".", "%2E"),
        presigned,
        lambda: presigned().removeprefix("iam-sts-v1."),
        lambda: presigned()[-40:],
        url,
        lambda: url().partition("X-Amz-Signature=")[2],
        lambda: KEYS.session_token,
    ],
)
def test_a_credential_is_found_in_each_spelling_and_cut(leak):
    text = f'{{"path":"/orders/{leak()}","n":1}}'
    presigned()

    assert len(sent.held(text)) == 1
    assert sent.held(sent.cut(text)) == set()
    assert sent.cut(text).startswith('{"path":"/orders/')


@pytest.mark.parametrize(
    "text",
    [
        lambda: token().rpartition(".")[0],
        lambda: "A" * 9000,
        lambda: "6f9b2c1e-8d3a-4f7b-9c2d-1e8a5b7c3d9f " * 40,
        lambda: "x-amz-date=20260101T000000Z&x-amz-credential=ASIAEXAMPLEEXAMPLE12%2Fsts",
    ],
)
def test_what_opens_nothing_is_no_credential(text):
    token(signature="text:" + "A" * 86)
    token(segments=2)

    assert sent.held(text()) == set()


def test_no_report_holds_a_credential():
    said = f"it logged {token()}"
    evidence = Evidence(said, said, said, said, {"agent": said})
    result = CheckResult("a.b.c", (), Verdict.FAIL, said, evidence, transcript=said)

    shown = repr(reported(result, reference_agent()))

    assert sent.held(repr(result))
    assert not sent.held(shown)
    assert reported(replace(result, message="it failed"), reference_agent()).message == "it failed"
