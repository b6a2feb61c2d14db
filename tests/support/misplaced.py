"""Credentials in places where they do not belong, for tests of what is written down."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from urllib.parse import quote

import jwt
from hypothesis import strategies as st
from sts_support import credential, presign
from tokens_support import ED_KEY, claims, mint

_STS_NAME = 48
RUN = 16
"""Characters of a secret in a row that nobody may read in a log."""


def _signature_first(url):
    """The caller chooses the order of the parameters, so that a cut leaves the signature."""
    head, _, query = url.partition("?")
    return f"{head}?" + "&".join(sorted(query.split("&"), key=lambda one: "Signature=" not in one))


_LONG_SESSION = presign() + "&X-Amz-Security-Token=" + quote("FwoGZXIv/+" * 120, safe="")
_SHORT_JWT = jwt.encode(
    {"iss": "https://i.e", "aud": "a", "sub": "b", "exp": 1900000000, "roles": ["arn:aws:iam::1:role/r"]},
    ED_KEY, "EdDSA", headers={"typ": None},
)  # fmt: skip
CREDENTIALS = [
    *(mint(claims()), _SHORT_JWT, mint(claims(session="x" * 900))),
    *(credential(url)[7:] for url in (presign(), _LONG_SESSION, _signature_first(presign()))),
    *(presign(), _signature_first(presign())),
]


def secret_of(text):
    """Return what nobody may read: a signature, or our form of a pre-signed request after STS's name."""
    if text.startswith("https:"):
        return text.partition("X-Amz-Signature=")[2][:64]
    last = text.rpartition(".")[2]
    return last[_STS_NAME:] if text.startswith("iam-sts") else last


def _percent(text):
    return "".join(f"%{ord(char):02x}" for char in text)


SPELLINGS = [
    *(str, lambda text: text.replace(".", "%2E"), lambda text: text.replace(".", "%2e")),
    *(lambda text: text + "==", lambda text: text + "%3D%3D", _percent),
    *(lambda text: text.replace("?", "%3F"), lambda text: quote(text, safe="")),
    lambda text: ".".join(_percent(part[0]) + part[1:] for part in text.split(".")),
]
DOUBLED = ["{0}", "{0}{0}", "{0}.{0}", "{0}/{0}", "a-{0}", "{0}-a", "t={0}&u=1", "~{0}~", "%20{0}"]
DOUBLED += ["Bearer {0}"]


@dataclass(frozen=True)
class Misplaced:
    """A text that holds a credential, whole or cut."""

    text: str
    secret: str

    def shown_by(self, written):
        """Return the first run of the secret that stands in a text, or an empty string."""
        runs = (self.secret[at : at + RUN] for at in range(len(self.secret) - RUN + 1))
        return next((run for run in runs if run in written), "")


def _each():
    for whole, spelled, around in product(CREDENTIALS, SPELLINGS, DOUBLED):
        text = spelled(whole)
        for end in (None, 1024, 700, 260, len(text) - 1, len(text) - 40):
            yield Misplaced(around.format(text[:end]), secret_of(whole))


EACH = list(_each())
"""Credentials of each kind, spelled in each way, cut or not, once and twice and beside other text."""
misplaced = partial(st.sampled_from, EACH)
