"""Odd messages by hypothesis, for the fuzzer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from iamroles_scenarios.wire.client import check_arguments
from iamroles_scenarios.wire.codec import string, varint
from iamroles_scenarios.wire.frames import Frame, FrameType
from iamroles_scenarios.wire.fuzz_inputs import ODD_IDS

_NAMES = st.sampled_from(
    [b"iam-check", b"iam-context", b"", b"x", b"\xff\xfe", b"iam-check\x00", b"n" * 300]
) | st.binary(max_size=12)
_ARGUMENTS = st.sampled_from([name.encode() for name in check_arguments({})]) | _NAMES
_LENGTHS = st.sampled_from([0, 1, 239, 240, 2287, 2288])
_VALUES = st.one_of(
    st.sampled_from([b"\x00", b"\x01", b"\x11", b"\xf1", b"\x21"]),
    st.builds(
        lambda kind, number: bytes([kind]) + varint(number), st.integers(2, 5), st.integers(0, 2**64 - 1)
    ),
    st.builds(lambda raw: b"\x06" + raw, st.binary(min_size=4, max_size=4)),
    st.builds(lambda raw: b"\x07" + raw, st.binary(min_size=16, max_size=16)),
    st.builds(
        lambda kind, raw: bytes([kind]) + string(raw), st.sampled_from([8, 9, 0x18]), st.binary(max_size=40)
    ),
    st.builds(lambda length: b"\x08" + string(b"/" * length), _LENGTHS),
    st.builds(lambda kind, raw: bytes([kind]) + raw, st.integers(10, 255), st.binary(max_size=8)),
)
_MESSAGES = st.builds(
    lambda name, pairs, lie: (
        string(name)
        + bytes([(len(pairs) + lie) % 256])
        + b"".join(string(key) + value for key, value in pairs)
    ),
    _NAMES,
    st.lists(st.tuples(_ARGUMENTS, _VALUES), max_size=9),
    st.sampled_from([0, 0, 0, 0, 1, -1, 200]),
)
_NOTIFIES = st.builds(
    lambda messages, stream_id, frame_id: Frame(
        FrameType.NOTIFY, stream_id, frame_id, b"".join(messages)
    ).encode(),
    st.lists(_MESSAGES, max_size=3),
    st.sampled_from(ODD_IDS),
    st.sampled_from(ODD_IDS),
)


@contextmanager
def _caches_elsewhere() -> Iterator[None]:
    """hypothesis keeps its caches in the user's cache folder, not where a vendor runs the suite."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    set_hypothesis_home_dir(cache / "iamroles" / "hypothesis")
    try:
        yield
    finally:
        set_hypothesis_home_dir(None)


def from_grammar(number: int, count: int) -> list[bytes]:
    """NOTIFYs whose parts are right one by one and odd together."""
    found: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_NOTIFIES)
    def gather(raw: bytes) -> None:
        found.append(raw)

    with _caches_elsewhere():
        gather()
    while len(found) < count:  # hypothesis stops early when it believes that it has seen everything
        found.append(found[len(found) // 2])
    return found
