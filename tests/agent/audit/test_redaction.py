"""Client text in a record: no credential, no more than its share, at a flat cost for each byte."""

import json
from json.encoder import encode_basestring_ascii as quoted

import pytest
from counting import seconds
from hypothesis import given
from hypothesis import strategies as st
from tokens_support import claims, encode_base64url, mint

from iamroles_agent.audit.redaction import credential_hash, redacted, shown


def part(members, before="", indent=None):
    return encode_base64url((before + json.dumps(members, indent=indent)).encode())


HEADER, BODY, SEAL = {"alg": "ES256"}, {"iss": "https://idp.example.com", "sub": "alice"}, "c2ln" * 21 + "cw"


@pytest.mark.parametrize(
    "header",
    [
        part(HEADER),
        part(HEADER, indent=1),  # ewog…
        encode_base64url(b'{ "alg":"ES256"}'),  # eyAi…, which once escaped
        encode_base64url(b'{\t"alg":"ES256"}'),
        encode_base64url(b'{\r\n"alg":"ES256"}'),
        part(HEADER, before=" "),
        part(HEADER, before="\n\n"),
        part([1, 2, 3, 4, 5, 6, 7, 8]),  # no object at all: three parts are enough
    ],
)
@pytest.mark.parametrize("around", ["{}", "/t/{}/x", "?t={}&u=1", "a-{}", "Bearer {}", "{}/{}"])
def test_any_three_part_token_goes(header, around):
    token = f"{header}.{part(BODY)}.{SEAL}"

    text = redacted(around.format(token, token))

    assert not any(secret in text for secret in token.split("."))
    assert "[redacted sha256:" in text


@pytest.mark.parametrize("pad", ["=", "%3D", "=="])
def test_a_token_with_padded_parts_goes(pad):
    text = redacted(f"/orders/{part(HEADER)}{pad}.{part(BODY)}{pad}.{SEAL}/x")

    assert SEAL not in text
    assert text.endswith("]/x")


def test_a_token_is_still_named_by_its_hash():
    token = mint(claims())

    assert redacted(f"/a/{token}/b") == f"/a/[redacted {credential_hash(token)}]/b"


@pytest.mark.parametrize(
    "text",
    [
        "/orders/1",
        "/files/eyeglasses.jpg",
        "/releases/v1.12.3/my-very-long-package-name-1.2.3-py3-none-any.whl",
        "ec2-203-0-113-25.eu-west-1.compute.amazonaws.com",
        "internal-orders-load-balancer-1234567890.eu-central-1.elb.amazonaws.com",
        "https://sts.amazonaws.com/",
        "forbearers-and-bearer/x",
        "arn:aws:iam::111122223333:role/eyJ",
        "alice@example.com",
    ],
)
def test_names_stay(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "X-Amz-Signature=0123abcd",
        "x-amz-security-token=IQoJb3JpZ2luX2VjE",
        "/p?X-Amz-Credential%3DASIAEXAMPLE",
        "Bearer abcdefghijkl",
        "bearer%20abcdefghijkl",
    ],
)
def test_other_forms_of_a_secret_go(text):
    assert "redacted" in redacted(text)
    assert text.rpartition("=")[2][-8:] not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "/a/iam%2Dsts%2Dv1.AAAAAAAA/b/iam%252Dsts%252Dv1%252EBBBBSECRET",
        "/a/iam-sts-v1.AAAA%2BSECRET",
        "/a/iam-sts-v1%2EAAAA%26SECRET/b",
    ],
)
def test_what_was_found_encoded_once_hides_no_more(text):
    assert "SECRET" not in redacted(text)


@pytest.mark.parametrize(
    "unit",
    [
        *("eyJ", "eyJ.", "/eyJabcdef.", "a.", "-%2ea%2", "%2e", "aaaaaaaaaaaaaaaa.", "eyJaaaaaa%2E"),
        *("bearer+", "bearer   %", "bearer=========", "x-amz-credential", "x-amz-signature=", "iam-sts-v1."),
        *("bbbbbbbbbbbbbbbbbbbb.cccccccccccccccccccc./", "İ", "\x00", "\xff."),
    ],
)
def test_the_cost_of_a_byte_is_flat(unit):
    """Eight short texts cost about as much as one of their length; squared it would be eight times."""
    short, long = ((unit * size)[:size] for size in (4096, 32768))

    assert seconds(lambda: redacted(long)) < 3 * seconds(lambda: [redacted(short) for _ in range(8)])


@given(st.text(max_size=400), st.integers(64, 300))
def test_what_is_shown_fits_as_json(text, limit):
    assert len(quoted(shown(text, limit))) - 2 <= limit
    assert shown("/orders/1", limit) == "/orders/1"
