"""Tools of the token tests: keys, minting, a clock, a real local HTTP server that counts."""

import asyncio
import json
import socket
import threading
import time
from base64 import urlsafe_b64encode
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import spop_transcript
from audit_support import opened
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from iamroles_agent.audit.log import Audit
from iamroles_agent.base.config import AuditSettings, Config, Issuer, KeySettings, MetricsSettings
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.policy import Policy
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.metrics import Metrics
from iamroles_agent.spop.messages import Context
from iamroles_agent.tokens import Authenticator
from iamroles_agent.tokens.authenticator import rules_of
from iamroles_agent.tokens.keys import KeySet

NOW = 1_800_000_000
ISSUER = "https://idp.example.com/corp"
AUDIENCE = "orders"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/Reader"
READER = {"name": "reader", "arn": ROLE}


class Clock:
    """A clock that a test moves."""

    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def adopt(agent, config):
    agent.adopt(config, rules_of(config))


def encode_base64url(data):
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(private, kid, alg=None):
    """The public JWK of a private key."""
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((found for kind, found in kinds.items() if isinstance(private, kind)), OKPAlgorithm)
    jwk = dict(algorithm.to_jwk(private.public_key(), as_dict=True)) | {"use": "sig"}
    jwk.pop("key_ops", None)
    return jwk | {name: value for name, value in (("kid", kid), ("alg", alg)) if value is not None}


EC_KEY, OTHER_EC_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def claims(**changes):
    """Good claims with changes; a value of `...` removes the claim."""
    base = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "jti": "id-1", "iat": NOW - 10, "exp": NOW + 300,
        "roles": [ROLE],
    }  # fmt: skip
    return {name: value for name, value in (base | changes).items() if value is not ...}


def mint(payload, key=EC_KEY, alg="ES256", **header):
    """Sign claims; header members of `...` are left out."""
    headers = {name: value for name, value in ({"kid": "k1"} | header).items() if value is not ...}
    return jwt.encode(payload, key, alg, headers=headers)


def token_of(issuer, key=EC_KEY, kid="k1", **changes):
    """A token that is good for a quarter of an hour from now."""
    now = int(time.time())
    return mint(claims(**{"iss": issuer, "iat": now - 10, "exp": now + 900} | changes), key, kid=kid)


def issuer(**changes):
    """An issuer of the policy."""
    base = {"name": "corp", "issuer": ISSUER, "audiences": [AUDIENCE], "algorithms": ["ES256"]}
    nowhere = {"jwks_uri": "https://127.0.0.1:1/jwks"}  # nobody listens: no test leaves this machine
    return Issuer.model_validate({**base, **nowhere, **changes})


def authenticator_with(jwks, clock=None, **changes):
    """An authenticator whose one issuer has these keys already, as if fetched just now."""
    config = Config(version=1, issuers=[issuer(**changes)], keys=KeySettings(refresh="10d", max_stale="10d"))
    authenticator = Authenticator(config, clock=clock or Clock())
    source = next(iter(authenticator.sources.values()))
    source._keys, source._fetched_at = KeySet.parse({"keys": jwks}), time.monotonic()
    return authenticator


async def reason(agent, header, *source):
    """The reason for which a credential is refused, or "" if it is accepted."""
    try:
        await agent.authenticate(header, *source)
    except Refusal as refusal:
        return str(refusal.reason)
    return ""


def gate_of(policy, agent, clock, audit=None):
    """A gate that asks this authenticator."""
    metrics = Metrics(MetricsSettings())
    audit = audit or Audit(AuditSettings(path="none"))
    return Gate(Policy(Config.model_validate(policy)), agent, audit, metrics, clock=clock)


class Bench:
    """A gate of a policy with the issuer `corp`, whose clock a test moves."""

    def __init__(self, written, audit="none"):
        self.clock = Clock()
        self.authenticator = Authenticator(Config.model_validate(written), clock=self.clock)
        source = self.authenticator.sources["corp"]
        source._keys = KeySet.parse({"keys": [public_jwk(EC_KEY, "k1")]})
        source._fetched_at = source._monotonic()
        self.audit = opened(audit)
        self.gate = gate_of(written, self.authenticator, self.clock, self.audit)

    def answer(self, **asked):
        """The variables of the answer to a question, remembered or not."""
        check = replace(spop_transcript.USUAL, **asked)
        key, context = repr(check).encode(), Context("r-1", 5, 7)
        found = self.gate.recall(key, context) or asyncio.run(self.gate.judge(check, context, key))
        said = spop_transcript.variables(found)
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in said.items()}

    def reason(self, *question, **changes):
        return self.ask(*question, **changes).get("reason", "allowed")


class Server:
    """A real HTTP server on loopback: replies by path, counts requests, keeps what it was sent."""

    def __init__(self):
        self.replies = {}
        self.counts = Counter()
        self.requests = []
        self._seen = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = self.path.partition("?")[0]
                with outer._seen:
                    outer.counts[path] += 1
                    outer.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                    outer._seen.notify_all()
                reply = outer.replies.get(path, lambda _: (404, {}, b""))(self)
                if reply is None:
                    self.close_connection = True
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def json(self, path, document):
        """Serve a document from now on."""
        body = json.dumps(document).encode()
        self.replies[path] = lambda _: (200, {"Content-Type": "application/json"}, body)

    def raw(self, path, body, status=200, **headers):
        """Serve these bytes from now on; `_` in a header's name is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies[path] = lambda _: (status, named, body)

    def wait_for(self, path, count, timeout=5):
        """Wait until a path was asked for so often."""
        with self._seen:
            assert self._seen.wait_for(lambda: self.counts[path] >= count, timeout), self.counts

    def close(self):
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def hanging_resolver(monkeypatch):
    """Let the first look-up of a name hang until an event is set; return the look-ups and the event."""
    resolve, asked, hang = socket.getaddrinfo, [], threading.Event()

    def getaddrinfo(*name, **how):
        asked.append(name)
        if len(asked) == 1:
            hang.wait(30)
        return resolve(*name, **how)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked, hang


@contextmanager
def serving():
    """A server for the length of a test."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def publishing():
    """A server whose key set, at `/jwks`, has `EC_KEY` under the kid `k1`."""
    with serving() as server:
        server.json("/jwks", {"keys": [public_jwk(EC_KEY, "k1")]})
        yield server
