"""HAProxy's question: the messages `iam-context` and `iam-check` (SPEC.md section 2).

How a decision is found by bytes
--------------------------------
A NOTIFY is parsed in full only once for each question. `iam-context` changes with every request and never
influences the verdict; `iam-check` is the same from request to request. So the bytes of the whole `iam-check`
message, with its name, are the key under which the gate remembers its actions.

`glance` finds that key without parsing. If the payload begins with an `iam-context` exactly as HAProxy writes
it for our configuration, its few short arguments are read by comparison with constants, and *the rest of the
payload* is the key. At this point nothing has checked that the rest is a well-formed `iam-check` message.
That is sound: keys enter the gate's memory only from `parse`, which checks exactly that, and equal bytes
parse equally. Bytes that never passed `parse` are not remembered, so they miss and are parsed. The gate must
do its half: remember only under keys that `judge` got.

After any deviation (another order, more arguments, more messages) `glance` returns None, and `parse` finds
messages and arguments by name, as the contract demands, with the same key if there is exactly one
`iam-check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from iamroles_agent.base.identity import NO_HEADERS, McpHeaders
from iamroles_agent.spop import values, varint
from iamroles_agent.spop.errors import invalid
from iamroles_agent.spop.values import INTEGERS, DataType, Value

CONTEXT = b"iam-context"
CHECK = b"iam-check"
_CONTEXT_START = b"\x0biam-context"
_REQUEST_ID = b"\x0arequest-id\x08"
_SRC_PORT = b"\x08src-port\x04"
_STREAM = b"\x06stream\x04"
_HEADS = {_CONTEXT_START + bytes((count,)) + _REQUEST_ID: count for count in (2, 3)}
_HEAD_LENGTH = len(_CONTEXT_START + b"\x03" + _REQUEST_ID)
_MAX_PORT, _MAX_STREAM = 0xFFFF, 0xFFFFFFFF
"""HAProxy never sends greater or negative numbers: `parse` reads them."""

LIMITS = {"method": 32, "host": 260, "path": 4096, "role": 640, "proof": 4096}
LIMITS |= {"mcp-version": 32, "mcp-method": 128, "mcp-name": 1024, "origin": 512, "preflight": 32}
"""Most bytes of each judged text (SPEC.md section 2); a longer text is refused, unread. A host name has 253,
then a dot and a port; the longest role ARN that is read has 613."""

_MCP = tuple(name.encode() for name in list(LIMITS)[-len(McpHeaders._fields) :])
"""The arguments of `McpHeaders`."""

_Arguments = dict[bytes, tuple[DataType, Value]]


@dataclass(slots=True)
class Context:
    """`iam-context`: for the audit line and live expiry, never for the decision.

    Not frozen, because that would cost three times as much on the path of every request.
    """

    request_id: str = ""
    src_port: int | None = None
    stream: int | None = None
    """HAProxy's `txn.id32`; None before HAProxy 2.9."""


@dataclass(frozen=True, slots=True)
class Check:
    """`iam-check`: the question. Texts have a character for each byte (Latin-1), so nothing is lost."""

    authorization: str | None
    """The whole header, None if the client sent none."""
    authorization_count: int
    role: str | None
    """The requested role."""
    method: str
    host: str | None
    path: str
    src: IPv4Address | IPv6Address | None
    missing: tuple[str, ...] = ()
    """Required arguments that are absent, NULL although that is forbidden, or of a wrong type, in the order
    of SPEC.md section 2. If there are any, the verdict is a deny with `internal_error`."""
    certificate: str | None = None
    """Thumbprint of the client's certificate, as `x5t#S256` has it; None: no certificate."""
    proof: str | None = None
    """The whole `DPoP` header, None if the client sent none."""
    proof_count: int = 0
    mcp: McpHeaders = NO_HEADERS

    @property
    def too_long(self) -> tuple[str, ...]:
        """Arguments above `LIMITS`: the verdict is a deny with `text_too_long`."""
        texts: tuple[str | None, ...] = (self.method, self.host, self.path, self.role, self.proof)
        if self.mcp is not NO_HEADERS:
            texts += self.mcp
        pairs = zip(LIMITS, texts, strict=False)
        return tuple(name for name, text in pairs if text is not None and len(text) > LIMITS[name])


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A NOTIFY parsed in full."""

    context: Context
    check: Check | None = None
    """None: nothing is asked, or `problem` explains why it has no answer."""
    key: bytes = b""
    """The bytes of the `iam-check` message that `check` was read from."""
    problem: str = ""
    """Why the question is ambiguous; the answer must be a deny."""


def glance(data: bytes, start: int, end: int) -> tuple[Context, bytes] | None:
    """Read the context and take the rest for the key, if the payload has the usual form.

    Returns:
        The context and the bytes after it; None: the caller must `parse`.
    """
    pos = start + _HEAD_LENGTH
    count = _HEADS.get(data[start:pos])
    if count is None or pos >= end or (length := data[pos]) >= 240:
        return None
    at = pos + 1 + length
    request_id = data[pos + 1 : at].decode("latin-1")
    pos = at + 10
    if data[at:pos] != _SRC_PORT or pos + 3 > end:
        return None
    first, second, third = data[pos : pos + 3]
    if first >= 240 and second >= 128 and third < 128:  # as `varint.read`: most ports take three bytes
        src_port, pos = first + (second << 4) + (third << 11), pos + 3
    else:
        src_port, pos = varint.read(data, pos, end)
    stream = None
    if count == 3:
        at, pos = pos, pos + 8
        if data[at:pos] != _STREAM:
            return None
        stream, pos = varint.read(data, pos, end)
    if src_port > _MAX_PORT or (stream or 0) > _MAX_STREAM:
        return None
    return Context(request_id, src_port, stream), data[pos:end]


def parse(data: bytes, start: int, end: int) -> Inquiry:
    """Parse the payload of a NOTIFY; find messages and arguments by name, ignore unknown names.

    Raises:
        RemoteProtocolError: status 4, the payload cannot be read.
    """
    context, problem = Context(), ""
    contexts, checks = 0, 0
    check, key = None, b""
    pos = start
    while pos < end:
        first = pos
        name, arguments, doubled, pos = _read_message(data, pos, end)
        if name == CONTEXT:
            contexts += 1
            context = _context(arguments)
        elif name == CHECK:
            checks += 1
            check, key = _check(arguments), data[first:pos]
        else:
            continue
        if doubled:
            problem = f"{name.decode()} has an argument twice"
    if checks > 1:
        problem = f"{checks} iam-check messages in one NOTIFY"
    elif contexts > 1:
        problem = f"{contexts} iam-context messages in one NOTIFY"
    if check is None:
        return Inquiry(context)
    if problem:
        return Inquiry(context, problem=problem)
    return Inquiry(context, check, key)


def _read_message(data: bytes, pos: int, end: int) -> tuple[bytes, _Arguments, bool, int]:
    """Return name, arguments, whether a name came twice, and the position after the message.

    Arguments without a name are ignored, however many (SPEC.md 2.1).
    """
    name, pos = values.read_string(data, pos, end)
    if pos >= end:
        raise invalid("a message has no argument count")
    count = data[pos]
    pos += 1
    arguments: _Arguments = {}
    for _ in range(count):
        argument, pos = values.read_string(data, pos, end)
        kind, value, pos = values.read(data, pos, end)
        if argument:
            arguments[argument] = kind, value
        else:
            count -= 1
    return name, arguments, len(arguments) < count, pos


def _context(arguments: _Arguments) -> Context:
    return Context(
        _text(arguments, b"request-id") or "",
        _integer(arguments, b"src-port"),
        _integer(arguments, b"stream"),
    )


def _check(arguments: _Arguments) -> Check:
    authorization = _text(arguments, b"authorization")
    count = _integer(arguments, b"authorization-count")
    method, path = _text(arguments, b"method"), _text(arguments, b"path")
    proof = _text(arguments, b"proof")
    proofs = _integer(arguments, b"proof-count") if b"proof-count" in arguments else int(proof is not None)
    src = arguments.get(b"src", (None, None))[1]
    source = src if isinstance(src, IPv4Address | IPv6Address) else None
    missing = []
    if not _nullable(arguments, b"authorization", DataType.STRING):
        missing.append("authorization")
    # A count of 0 beside a credential: the two contradict each other.
    if b"authorization-count" in arguments and (count is None or count < bool(authorization)):
        missing.append("authorization-count")
    missing += [
        name
        for name in ("role", "host", "certificate", "proof")
        if name.encode() in arguments and not _nullable(arguments, name.encode(), DataType.STRING)
    ]
    missing += [
        name for name, value in (("method", method), ("path", path), ("src", source)) if value is None
    ]
    mcp = NO_HEADERS
    if not arguments.keys().isdisjoint(_MCP):  # only a policy with resources asks so
        mcp = McpHeaders(*(_text(arguments, name) for name in _MCP))
        given = [name for name in _MCP if name in arguments]
        missing += [one.decode() for one in given if not _nullable(arguments, one, DataType.STRING)]
    if proofs is None or proofs < bool(proof):
        missing.append("proof-count")
    if count is None:
        count = 0 if authorization is None else 1
    return Check(
        authorization=authorization,
        authorization_count=count,
        role=_text(arguments, b"role"),
        method=method or "",
        host=_text(arguments, b"host"),
        path=path or "",
        src=source,
        missing=tuple(missing),
        certificate=_text(arguments, b"certificate"),
        proof=proof,
        proof_count=proofs or 0,
        mcp=mcp,
    )


def _text(arguments: _Arguments, name: bytes) -> str | None:
    kind, value = arguments.get(name, (None, None))
    return value.decode("latin-1") if kind is DataType.STRING and isinstance(value, bytes) else None


def _integer(arguments: _Arguments, name: bytes) -> int | None:
    kind, value = arguments.get(name, (None, None))
    return value if kind in INTEGERS and isinstance(value, int) else None


def _nullable(arguments: _Arguments, name: bytes, kind: DataType) -> bool:
    return name in arguments and arguments[name][0] in (kind, DataType.NULL)
