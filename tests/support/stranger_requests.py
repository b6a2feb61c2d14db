"""Requests of strangers to a gate, by kind, and an STS that tells forged credentials from sound ones."""

import asyncio
import itertools
import random
import re
import time

from hostile_requests import UNITS
from sts_support import HOST, as_json, credential, error_xml, presign
from tokens_support import OTHER_EC_KEY, encode_base64url, mint

from iamroles_loadtests.asking.cpu import cpu_seconds
from iamroles_scenarios.base.family import family
from iamroles_scenarios.engine.bench import EDGE

NUMBER = itertools.count(1)
ARN = "arn:aws:sts::111111111111:assumed-role/reader/me"
FORGED = "STS, forged"
FLOODER = "127.0.0.2"


class FakeSts(asyncio.Protocol):
    """Names the reader to a key that begins with SOUND, and refuses every other key."""

    asked = 0

    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):
        FakeSts.asked += 1
        said, kind, body = b"403 Forbidden", b"text/xml", error_xml("InvalidClientTokenId")
        if b"Credential=SOUND" in data:
            said, kind, body = b"200 OK", b"application/json", as_json(ARN, account="111111111111")
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (said, kind, len(body))
        self.write(head + body)


def presigned(key):
    """Make a credential of which only STS can say whether it is sound."""
    url = re.sub(r"Signature=\w+", f"Signature={next(NUMBER):064x}", presign(int(time.time()), EDGE))
    return credential(re.sub(r"Credential=\w+", f"Credential={key}{next(NUMBER):012d}", url))


def kinds(here):
    """Return what makes `Authorization` and path of each kind of request from a text."""
    es256, rs256, late = (here.token(key=key, exp=end) for key, end in
                          (("ES256", "+900s"), ("RS256", "+900s"), ("ES256", "-5s")))  # fmt: skip
    issuer, header = here.issuer().url, encode_base64url(b'{"alg":"ES256"}')

    def forged(text, **claims):
        payload = {"iss": issuer, "aud": "edge", "x": text[:4000]} | claims
        return "Bearer " + mint(payload, OTHER_EC_KEY, kid=f"k{next(NUMBER)}")

    def resealed(token):
        body, _, seal = token.rpartition(".")
        return f"Bearer {body}.{encode_base64url(random.randbytes(len(seal) * 3 // 4))}"

    def data(text):
        return encode_base64url(text.encode("latin-1", "replace"))

    return {
        "none": lambda _text: (None, "/orders/1"),
        "path": lambda text: (None, f"/{text}"),
        "path, forged token": lambda text: (resealed(es256), f"/{text[:8000]}"),
        "other scheme": lambda text: (f"Basic {text}", "/orders/1"),
        "text": lambda text: (f"Bearer {text}", "/orders/1"),
        "header": lambda text: (f"Bearer {data(text)}.e30.AA", "/orders/1"),
        "payload": lambda text: (f"Bearer {header}.{data(text)}.AA", "/orders/1"),
        "issuer": lambda text: (forged(text, iss="https://evil.example"), "/orders/1"),
        "kid": lambda text: (forged(text), "/orders/1"),
        "signature ES256": lambda _text: (resealed(es256), "/orders/1"),
        "signature RS256": lambda _text: (resealed(rs256), "/orders/1"),
        "expired": lambda _text: (f"Bearer {late}", "/orders/1"),
        "STS, other host": lambda text: (credential(f"https://x/?{text[:2900]}"), "/orders/1"),
        "STS, query": lambda text: (credential(f"https://{HOST}/?{text[:2900]}"), "/orders/1"),
        FORGED: lambda _text: (presigned("ASIA"), "/orders/1"),
    }


def request(authorization, path):
    """Make a request that nobody sent before."""
    said = "" if authorization is None else f"\r\nAuthorization: {re.sub('[^ -~]', '~', authorization)}"
    path = re.sub("[^!-~]", "~", path)
    return f"GET {path} HTTP/1.1\r\nHost: h{next(NUMBER)}{said}\r\n\r\n".encode()


class Caller:
    """A connection to HAProxy from an address."""

    def __init__(self, here, source="127.0.0.1"):
        self.proxy, self.source, self.writer = here.world.proxy, (source, 0), None

    async def ask(self, message):
        """Return the status of the answer."""
        if self.writer is None:
            to = self.proxy.host, self.proxy.port
            self.reader, self.writer = await asyncio.open_connection(*to, local_addr=self.source)
        self.writer.write(message)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        await self.reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head:
            self.writer = self.writer.close()
        return int(head.split()[1])


def _spent(here):
    """CPU seconds of agent and HAProxy."""
    parts = here.world.agent.pid, here.world.haproxy._runs[-1].part.pid
    return sum(cpu_seconds(pid) for part in parts for pid in family(part))


async def cost(here, make, text, count):
    """Return CPU microseconds of agent and HAProxy for a request."""
    messages = [request(*make(text)) for _ in range(count)]

    async def some(part):
        caller = Caller(here)
        for message in part:
            assert await caller.ask(message) >= 400, "a stranger was let in"
        if caller.writer:
            caller.writer.close()

    before = _spent(here)
    await asyncio.gather(*(some(messages[at::8]) for at in range(8)))
    return (_spent(here) - before) / count * 1e6


async def worst(here, make, seconds, chance):
    """Search for the text that costs most."""
    kept, end = [], time.monotonic() + seconds
    while not kept or time.monotonic() < end:
        unit = "".join(chance.choices(UNITS, k=chance.choice((1, 1, 2))))
        text = (unit * 14_000)[: chance.choice((40, 1000, 5500, 7900, 11_000))]
        kept.append((await cost(here, make, text, 24), text))
    return max(kept)[1]


async def flooded(here, make, count, source, *, callers, pause):
    """Return seconds that callers wait for their first verdict, if they are served, and CPU of all."""
    ended, sent = False, 0

    async def flood():
        nonlocal sent
        caller = Caller(here, FLOODER)
        while not ended:
            await caller.ask(request(*make("")))
            sent += 1
            await asyncio.sleep(pause)

    floods, waits, sound = [asyncio.create_task(flood()) for _ in range(count)], [], Caller(here, source)
    await asyncio.sleep(count and 1.0)
    before, began = _spent(here), sent
    for _ in range(callers):
        message, start = request(presigned("SOUND"), "/orders/1"), time.perf_counter()
        if await sound.ask(message) == 200:
            waits.append(time.perf_counter() - start)
    took = (_spent(here) - before) / (sent - began + callers)
    ended = True
    await asyncio.gather(*floods)
    return waits, took * 1e6
