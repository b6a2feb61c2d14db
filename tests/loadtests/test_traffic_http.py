"""Answers read from any pieces: where they end, what contradicts itself."""

import pytest

from iamroles_scenarios.traffic.http import CHUNKED, UNTIL_CLOSE, AnswerError, Head, Reader, read_head

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS, EARLY])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_pieces_give_the_same_answer(answer, size):
    reader = Reader()
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]

    ends = [reader.feed(piece) for piece in pieces]

    assert ends[:-1] == [None] * (len(pieces) - 1)
    assert ends[-1] == b""
    assert reader.head.status == 200
    assert reader.text.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS])
def test_what_follows_an_answer_is_handed_back(answer):
    assert Reader().feed(answer + b"HTTP/1.1 200") == b"HTTP/1.1 200"


def test_a_body_that_ends_with_the_connection():
    reader = Reader()

    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nsome") is None
    assert reader.ends_with_connection
    assert reader.feed(b" more") is None
    assert reader.text.endswith(b"some more")


def test_an_answer_to_head_has_no_body():
    assert Reader(bodiless=True).feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n") == b""


def test_a_long_stream_is_counted_and_not_kept():
    reader = Reader()
    size = 5_000_000
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)

    ends = [reader.feed(b"x" * 50_000) for _ in range(size // 50_000)]

    assert ends[-1] == b""
    assert ends.count(None) == len(ends) - 1
    assert len(reader.text) == 65_536


@pytest.mark.parametrize(
    ("head", "means"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", Head(200, 5, False)),
        (b"HTTP/1.1 200 OK\r\ncontent-LENGTH:5\r\nCONNECTION: x, Close", Head(200, 5, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5", Head(200, 5, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", Head(200, 5, False)),
        (b"HTTP/1.1 204 No Content", Head(204, 0, False)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5", Head(304, 0, False)),
        (b"HTTP/1.1 200 OK", Head(200, UNTIL_CLOSE, True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", Head(200, CHUNKED, False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip", Head(200, UNTIL_CLOSE, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Head(200, 5, False)),
    ],
)
def test_heads(head, means):
    assert read_head(head) == means


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/2 200\r\n\r\n", "status line"),
        (b"220 smtp.example ESMTP\r\n\r\n", "status line"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", "header field"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        (b"x" * 70_000, "without an end"),
    ],
)
def test_what_is_not_an_answer(answer, said):
    with pytest.raises(AnswerError, match=said):
        Reader().feed(answer)
