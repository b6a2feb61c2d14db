"""A log that somebody else wrote: the tools judge it, and never fall over it."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoking import ran, said

from iamroles_agent.audit.chain import Head, seal
from iamroles_tools.audit.verify import verify

NAMES = (
    "kind", "verdict", "reason", "rule", "backend", "role", "roles", "principal", "session", "issuer",
    "expires", "src", "method", "host", "path", "detail", "unmapped", "shadow", "request", "port", "stream",
    "use", "event", "about", "cut", "cause", "after", "batches", "peaks", "torn", "sync", "lost", "since",
    "worker", "writer", "turn", "prev", "hash", "format",
)  # fmt: skip
value = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
        st.sampled_from(["start", "end", "decision", "gap", "event", "termination", "policy", "0" * 64]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
record = st.fixed_dictionaries(
    {
        "time": st.one_of(st.just("2026-03-01T12:00:00.000Z"), value),
        "seq": st.one_of(st.integers(0, 9), value),
    },
    optional=dict.fromkeys(NAMES, value),
)


def written(path, records, sealed):
    """These records, some of them sealed as if by a worker, so that their fields are believed."""
    head = Head()
    with path.open("wb") as stream:
        for fields, seals in zip(records, sealed, strict=False):
            ordered = {"time": fields["time"], "seq": fields["seq"]} | fields
            line = bytearray(json.dumps(ordered, separators=(",", ":")).encode() + b"\n")
            timed = fields["time"] == "2026-03-01T12:00:00.000Z"
            if seals and timed and type(fields["seq"]) is int and fields["seq"] > 0:
                head = seal(line, head, b',"worker":0,"agent":"x","writer":"00"')
            stream.write(line)


@given(
    records=st.lists(record, min_size=1, max_size=6),
    sealed=st.lists(st.booleans(), min_size=6, max_size=6),
    tail=st.binary(max_size=20),
)
def test_no_line_is_too_strange(tmp_path_factory, records, sealed, tail):
    path = tmp_path_factory.mktemp("strange") / "audit.jsonl"
    written(path, records, sealed)
    with path.open("ab") as stream:
        stream.write(tail)

    for mixed in (False, True):
        verify([path], mixed=mixed, complete=True)
    for form in ("table", "json", "csv", "summary"):
        ran("audit query --who * --role * --path * --since 2026-01-01 --format", form, path)
    ran("audit query --kind decision --kind start --kind event --kind gap", path)


@pytest.mark.parametrize("damage", [slice(0, 40), slice(0, -4), slice(5, None)])
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "audit.jsonl.1.gz"
    path.write_bytes(gzip.compress(b'{"time":"2026-03-01T12:00:00.000Z","seq":1}\n' * 999)[damage])

    for command in ("audit verify", "audit query"):
        assert "audit.jsonl.1.gz" in said(command, path, code=2)
