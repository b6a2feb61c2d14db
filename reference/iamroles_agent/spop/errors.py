"""Faults on a connection: the peer's, or the agent's own."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Status codes of the DISCONNECT frames (SPOE.txt section 3.5)."""

    NORMAL = 0
    IO = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_FRAME_SIZE = 9
    NO_FRAGMENTATION = 10
    INTERLACED = 11
    FRAME_ID_NOT_FOUND = 12
    RESOURCES = 13
    UNKNOWN = 99


class ProtocolError(Exception):
    """Base of both faults."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the connection ends with an AGENT-DISCONNECT of this status.

    `message` is for the peer and the log; it never repeats what the peer sent.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{message} (SPOP status {status})")
        self.status = status
        self.message = message


class LocalProtocolError(ProtocolError):
    """This agent tried to send what the protocol forbids: a bug of the agent."""


def invalid(message: str) -> RemoteProtocolError:
    """Make the error for a frame that cannot be read: status 4."""
    return RemoteProtocolError(Status.INVALID, message)
