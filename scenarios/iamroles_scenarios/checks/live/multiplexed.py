"""Many streams on one connection: the client of the HTTP/2 checks (RFC 9113, RFC 8441), on the library h2."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RemoteSettingsChanged, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import TooSlow
from iamroles_scenarios.checks.live.stream import BEAT, ObservedStream, StreamShape
from iamroles_scenarios.engine.bench import Bench

_CONNECT = 5.0
_PIECE = 65536


class Multiplexed(ObservedStream):
    """One stream of a connection."""

    def __init__(self, number: int, shape: StreamShape, token: str) -> None:
        super().__init__(shape, token)
        self.number = number

    def __str__(self) -> str:
        return f"{self.shape} over HTTP/2"

    def saw(self, event: Event) -> None:
        match event:
            case ResponseReceived(headers=headers):
                self.status = int(dict(headers or [])[b":status"])
                self.last = time.time()
                self._answered.set()
                if self.shape.kind == "upload":
                    self.end()  # the answer ends an upload
            case DataReceived():
                self.last = time.time()
            case StreamEnded() | StreamReset():
                self.end()


class H2Client:
    """A connection to a gate with prior knowledge of HTTP/2, read and fed by a thread.

    Args:
        here: whose gate.
    """

    def __init__(self, here: Bench) -> None:
        self.over = threading.Event()
        self.fault = ""
        """Why it is over, if it was not closed from this side."""
        self._lock = threading.Lock()
        self._streams: dict[int, Multiplexed] = {}
        self._settled = threading.Event()
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._sock = socket.create_connection((here.world.proxy.host, here.world.proxy.port), _CONNECT)
        self._sock.settimeout(BEAT)
        self._h2.initiate_connection()
        self._flush()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._settled.wait(here.seconds(_CONNECT))

    def offered(self, shapes: Iterable[StreamShape]) -> list[StreamShape]:
        """Return the shapes that the proxy takes: WebSockets by RFC 8441, nothing if it speaks no HTTP/2.

        Raises:
            TooSlow: its settings did not come in time.
        """
        if not (self._settled.is_set() or self.fault):
            raise TooSlow("no settings of HTTP/2 came in time")
        webs = self._h2.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL)
        return [one for one in shapes if self._settled.is_set() and (webs or one.kind != "websocket")]

    def stream(self, shape: StreamShape, path: str, token: str) -> Multiplexed:
        with self._lock:
            number = self._h2.get_next_available_stream_id()
            found = self._streams[number] = Multiplexed(number, shape, token)
            ends = shape.kind in ("events", "download")
            fields = shape.fields(path, token)
            self._h2.send_headers(number, fields, end_stream=ends)
            recording.note("\r\n".join(f"{name}: {value}" for name, value in fields))
            self._flush()
        return found

    def send(self, stream: Multiplexed, piece: bytes) -> None:
        """Send a piece of a stream, if the windows allow it."""
        with self._lock:
            try:
                if self._h2.local_flow_control_window(stream.number) >= len(piece):
                    self._h2.send_data(stream.number, piece)
                    self._flush()
                    stream.sent = time.time()
            except (ProtocolError, OSError):
                stream.end()

    def close(self) -> None:
        self.over.set()
        self._thread.join(_CONNECT)
        self._sock.close()
        for stream in self._streams.values():
            recording.note(
                f"stream {stream.number}, {stream.shape}: status {stream.status}, "
                f"its token's end {stream.expires}, ended {stream.ended:.2f}"
            )

    def _flush(self) -> None:
        if pending := self._h2.data_to_send():
            self._sock.sendall(pending)

    def _run(self) -> None:
        fed = 0.0
        try:
            while not self.over.is_set():
                began = time.time()
                try:
                    piece = self._sock.recv(_PIECE)
                except TimeoutError:
                    piece = None
                if piece == b"":
                    self.fault = "closed by the proxy"
                    break
                if piece:
                    self._take(piece)
                if piece is None or len(piece) < _PIECE:
                    for stream in filter(ObservedStream.lives, list(self._streams.values())):
                        stream.looked = began
                if time.monotonic() - fed >= BEAT:
                    fed = time.monotonic()
                    self._feed()
        except (OSError, ProtocolError) as error:
            self.fault = f"{type(error).__name__}: {error}"
        self.over.set()
        for stream in list(self._streams.values()):
            stream.end()

    def _take(self, piece: bytes) -> None:
        with self._lock:
            for event in self._h2.receive_data(piece):
                if isinstance(event, RemoteSettingsChanged):
                    self._settled.set()
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                stream = self._streams.get(getattr(event, "stream_id", None) or 0)
                if stream is not None:
                    stream.saw(event)
                    if stream.shape.half and isinstance(event, ResponseReceived):
                        self._h2.end_stream(stream.number)
            self._flush()

    def _feed(self) -> None:
        for stream in list(self._streams.values()):
            beat = stream.shape.beat
            if beat and stream.lives() and (stream.shape.kind == "upload" or stream.status):
                self.send(stream, beat)
