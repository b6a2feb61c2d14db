"""Requests of strangers in genes, what one costs the agent, and a search for the costliest.

A search climbs: requests are built from genes (which text, which units, how often), the costliest are kept
and changed. `python -m benchmarks.hostile` searches for long and says what the law is.

What is measured is the whole way of a frame on the event loop: SPOP parsing, the gate, policy and tokens, the
record for the audit, the ACK. A signature check is a call into a library: here it answers at once. One
credential is good, so that texts beside a good one are searched too.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import time
import tracemalloc
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from unittest import mock

import tokens_support as tokens
from policies import document, grant
from spop_transcript import check_message, context_message, hello, notify

from iamroles_agent.audit import redaction
from iamroles_agent.audit.log import Audit
from iamroles_agent.base.config import AuditSettings
from iamroles_agent.policy import compiled
from iamroles_agent.spop import messages
from iamroles_agent.spop.connection import CheckRequested, Connection
from iamroles_agent.spop.values import DataType

MILLISECONDS, LOG_BYTES, MEMORY_BYTES, LONGEST = 1.0, 4096, 64 << 10, 16 << 10
GOOD = f"Bearer {tokens.mint(tokens.claims())}"
DEEP = "/deep" + "/a" * 12
STS = tokens.encode_base64url(b"https://sts.test/?")
HEADER = tokens.encode_base64url(b'{"alg":"ES256","kid":"k1"}')
CLAIMS = tokens.encode_base64url(json.dumps({"iss": tokens.ISSUER}).encode())
SIGNATURE = "A" * 86

UNITS = (
    *("a", "/", "/a", "//", ".", "..", "/.", "%", "%41", "%c3%a9", "%2e", "%20", "%zz", ";", "\\", "\0"),
    *("\xff", "\u00e9", " ", "\t", ",", "&", "=", "-", "_", "*.", "x-amz-date=", "Action=", "bearer "),
    *("eyJ", "eyA", "eyJ.", "a.", "aaaaaaaaaaaaaaaaaaaa.", "iam-sts-v1.", "bearer+", "x-amz-signature="),
    *('"', '\\"', "[", "{", "[]", "{}", "[],", "{},", '{"a":', '"a":1,', "1", "9", "1,", "0.1e9,"),
    *("\\ud800", "arn:aws:iam::", ":role/"),
)
FORMS = ("none", "raw", "bearer", "jwt", "header", "sts", "good")
ALPHABET = 'abcXYZ019.-_/%&=:;,"\\{}[]+ \t\xe9'


@dataclass(frozen=True)
class Gene:
    """A text: units, each so often, within what is left of the request."""

    pieces: tuple[tuple[str, int], ...] = ()

    def text(self, room):
        """At most `room` bytes."""
        return "".join(unit * count for unit, count in self.pieces)[: max(room, 0)]

    def changed(self, chance):
        pieces = list(self.pieces)
        kind = chance.randrange(5)
        at = chance.randrange(len(pieces) + 1)
        if kind == 0 or not pieces:
            pieces.insert(at, (unit(chance), 1 << chance.randrange(13)))
            return Gene(tuple(pieces[-4:]))
        at = chance.randrange(len(pieces))
        old, count = pieces[at]
        if kind == 1:
            pieces[at] = (unit(chance), count)
        elif kind == 2:
            pieces[at] = (old, max(1, int(count * chance.choice((0.25, 0.5, 0.9, 1.1, 2, 4)))))
        elif kind == 3:
            pieces[at] = (old + unit(chance), count)
        else:
            del pieces[at]
        return Gene(tuple((text[:64], min(number, LONGEST)) for text, number in pieces))


def unit(chance):
    """A text of the kind that has hurt parsers, or a random one."""
    if chance.random() < 0.8:
        return chance.choice(UNITS)
    return "".join(chance.choices(ALPHABET, k=chance.randrange(1, 6)))


@dataclass(frozen=True)
class Attack:
    """A request in genes."""

    form: str = "none"
    credential: Gene = Gene()
    path: Gene = Gene()
    host: Gene = Gene()
    role: Gene = Gene()
    method: Gene = Gene()

    def texts(self, share=1.0):
        """The texts, 16 kB of them at most; `share`: of that."""
        room = int((LONGEST - 200) * share)
        found = {"authorization": self._authorization(room)}
        room -= len(found["authorization"] or "")
        path = self.path.text(room)
        found["path"] = path if path.startswith("/") else f"/{path}"
        room -= len(found["path"] or "")
        found["host"] = self.host.text(room) or None
        room -= len(found["host"] or "")
        found["role"] = self.role.text(room) or None
        found["method"] = self.method.text(room - len(found["role"] or "")) or "GET"
        return found

    def _authorization(self, room):
        text = self.credential.text(room)
        data = tokens.encode_base64url(text.encode("latin-1", "replace")[: room * 3 // 4 - 90])
        return {
            "none": None,
            "good": GOOD,
            "raw": text or "x",
            "bearer": f"Bearer {text}"[:room],
            "sts": f"Bearer iam-sts-v1.{STS}{data}",
            "header": f"Bearer {data}.{CLAIMS}.{SIGNATURE}",
            "jwt": f"Bearer {HEADER}.{data}.{SIGNATURE}",
        }[self.form]

    def changed(self, chance):
        if chance.random() < 0.15:
            return replace(self, form=chance.choice(FORMS))
        name = chance.choice(("credential", "path", "path", "host", "role", "method"))
        return replace(self, **{name: getattr(self, name).changed(chance)})

    def __str__(self):
        said = (
            f"{name}=" + "+".join(f"{text!r}x{n}" for text, n in pieces)
            for name in ("credential", "path", "host", "role", "method")
            if (pieces := getattr(self, name).pieces)
        )
        return f"{self.form} {' '.join(said)}"


@dataclass
class Cost:
    """The cost of a request."""

    size: int
    seconds: float = 0.0
    log: int = 0

    @property
    def each(self):
        """Nanoseconds of a byte."""
        return self.seconds * 1e9 / self.size


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def emit(self, record):
        self.bytes += len(self.format(record))


@dataclass
class Target:
    """The agent without its socket: a connection and a gate."""

    size_of_log: int = 0
    lines: _Lines = field(default_factory=_Lines)
    checked: int = 0
    """Signatures that were looked at."""

    def __post_init__(self):
        authenticator = tokens.authenticator_with([tokens.public_jwk(tokens.EC_KEY, "k1")], tokens.Clock())
        for source in authenticator.sources.values():
            for key in source._keys or ():
                key._verifiers["ES256"] = self._verify
        self.audit = Audit(AuditSettings(path="none"))
        record = self.audit.record

        def recorded(prepared, *rest):
            self.size_of_log += len(prepared.body) + 500  # sequence, time, request id, hashes
            return record(prepared, *rest)

        self.audit.record = recorded
        hosts = ["*.example.com", "*.d.c.b.a.example.com"]
        policy = document(grant("R1", "reader", "GET", DEEP, hosts=hosts), roles=[tokens.READER])
        self.gate = tokens.gate_of(policy, authenticator, tokens.Clock(), self.audit)
        self.connection = Connection(self.gate.recall, max_frame_size=16380)
        self.connection.receive_data(hello())
        self.connection.data_to_send()
        asyncio.run(authenticator.authenticate(GOOD))

    def _verify(self, signature, _data):
        self.checked += 1
        return signature != b"\0" * 64  # what attacks carry; the good token has a real one

    def frame(self, attack, share=1.0):
        texts = attack.texts(share)
        said = {name: text.encode("latin-1", "replace") for name, text in texts.items() if text is not None}
        pairs = dict.fromkeys(texts, (DataType.NULL, None))
        pairs |= {name: (DataType.STRING, raw) for name, raw in said.items()}
        pairs["authorization_count"] = (DataType.INT64, int(texts["authorization"] is not None))
        pairs["src"] = (DataType.IPV4, ip_address("192.0.2.1"))
        return notify(context_message() + check_message(**pairs))

    def ask(self, frame):
        """Everything that the event loop does for a frame; what would wait for the network is let go."""
        for event in self.connection.receive_data(frame):
            if isinstance(event, CheckRequested):
                judging = self.gate.judge(event.check, event.context, event.key)
                try:
                    judging.send(None)
                except StopIteration as done:
                    self.connection.acknowledge(event.ids, done.value)
                finally:
                    judging.close()
        self.connection.data_to_send()

    def cost(self, attack, *, share=1.0, times=1):
        """Return what a request takes, the least of some tries."""
        frame = self.frame(attack, share)
        cost = Cost(len(frame), float("inf"))
        for _ in range(times):
            self.size_of_log, self.lines.bytes = 0, 0
            self.gate.replace(self.gate.policy)  # nothing is remembered
            began = time.thread_time()
            self.ask(frame)
            cost.seconds = min(cost.seconds, time.thread_time() - began)
            cost.log = self.size_of_log + self.lines.bytes
        return cost


def search(target, seed, *, strangers, worth, seconds=float("inf"), tries=1 << 30):
    """Climb, for this many seconds of CPU or this many tries.

    Returns:
        The attack that is worth most, and how many were tried.
    """
    chance = random.Random(seed)
    forms = [form for form in FORMS if form != "good"] if strangers else ["good"]
    kept = []
    tried, end = 0, time.process_time() + seconds

    def consider(attack):
        nonlocal tried
        tried += 1
        value = worth(target.cost(attack))
        if len(kept) == 12 and value <= kept[-1][0]:
            return
        value = worth(target.cost(attack, times=3))  # an interruption must not win
        kept.append((value, -tried, attack))
        kept.sort(reverse=True)
        del kept[12:]

    for form in forms:
        for text in UNITS:
            for name, length in (("credential", 5900), ("path", 2047), ("path", 4095)):
                consider(replace(Attack(form), **{name: Gene(((text, max(1, length // len(text))),))}))
    while tried < tries and time.process_time() < end:
        attack = chance.choice(kept)[2]
        for _ in range(chance.randrange(1, 4)):
            attack = attack.changed(chance)
        if strangers == (attack.form != "good"):
            consider(attack)
    return kept[0][2], tried


def growth(target, attack):
    """Divide what a byte costs in the whole request by what it costs in a quarter of it: 1 is flat."""
    whole, quarter = (target.cost(attack, share=share, times=9) for share in (1.0, 0.25))
    return whole.each / max(quarter.each, 1.0)


def retained(target, seed, count=400):
    """Bytes that so many requests of strangers leave in memory, all different, after as many before them."""

    def round_of(number):
        chance = random.Random(seed + number)
        for each in range(count):
            dots, slashes = chance.randrange(2000), chance.randrange(1500)
            long = Gene((("a.b", dots), (f"{number}-{each}", 1), ("/a", slashes)))
            target.ask(target.frame(Attack(chance.choice(FORMS[:-1]), long, long, long, long)))

    for warm in range(4):
        round_of(warm)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    round_of(5)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


# Old faults, to show that the search finds them.

_OLD_SECRET = re.compile(
    r"ey[JK][A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){1,4}"
    r"|iam-sts-v1\.[A-Za-z0-9_=-]*"
    r"|(?i:X-Amz-(?:Signature|Security-Token|Credential)(?:=|%3D)[^&\s]*)"
    r"|(?i:bearer(?:\s|%20|\+)+[A-Za-z0-9._~+/=-]{8,})"
)


_NEW_QUERY = compiled.Query.from_request
FAULTS = {
    "slow-redaction": lambda: mock.patch.object(
        redaction, "redacted", lambda text: _OLD_SECRET.sub("[redacted]", text)
    ),
    # All prefixes, however deep: the square of the path.
    "slow-paths": lambda: mock.patch.object(
        compiled.Query, "from_request", staticmethod(lambda request, *_reach: _NEW_QUERY(request))
    ),
    "no-limits": lambda: mock.patch.dict(messages.LIMITS, dict.fromkeys(messages.LIMITS, 1 << 20)),
}


@contextlib.contextmanager
def fault(*names):
    """Put old faults back for a while."""
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(FAULTS[name]())
        yield
