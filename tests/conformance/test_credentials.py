"""A failure shows only a part of a token."""

import base64

import pytest

from iamroles_scenarios.engine.credentials import readable


def _part(text):
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_header_and_claims_are_shown_and_never_the_signature():
    header, claims = _part('{"alg":"ES256"}'), _part('{"sub":"ann"}')
    token = f"{header}.{claims}.c2lnbmF0dXJl"

    lines = readable(token)

    assert lines[0] == 'token header: {"alg":"ES256"}'
    assert lines[1] == 'token claims: {"sub":"ann"}'
    assert "c2lnbmF0dXJl" not in " ".join(lines)


@pytest.mark.parametrize("text", ["", "opaque", "a.b", "a.b.c.d"])
def test_what_is_no_jwt_shows_nothing(text):
    assert readable(text) == []


def test_a_broken_part_is_said_to_be_broken():
    assert readable(f"!.{_part(chr(27) + '[31m')}.x")[1] == "token claims: \\x1b[31m"


def test_a_presigned_request_is_shown_without_signature_and_session():
    url = (
        "https://sts.example/?Action=GetCallerIdentity&X-Amz-Security-Token=sEsSiOn&X-Amz-Signature=0123abcd"
    )

    [line] = readable(f"iam-sts-v1.{_part(url)}")

    assert "Action=GetCallerIdentity" in line
    assert "sEsSiOn" not in line
    assert "0123abcd" not in line
