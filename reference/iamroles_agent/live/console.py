"""HAProxy's master CLI (management.txt section 9.4), and what its answers mean.

In prompt mode each answer ends in a prompt on a line of its own, so one connection serves many commands, and
a sticky `@!<pid>` leads to one worker. Tickets and addresses hold neither blanks nor line breaks, so lines
are split as they are.

A list has a connection of its own and no prompt: `show table` and `show sess`. It ends with an empty line. If
a list fills the socket of an agent that is slow to read, the master (3.0.11) may forget what comes last: a
prompt, or the connection's end. So nobody waits for those, and the agent's end of file reminds the master.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from iamroles_agent.live.ticket import Ticket, TicketError

TABLE = "iam-live"
WAITING = "iam-wait"
"""The table of all requests that were allowed and are under way; the long ones are in `TABLE` too."""
FRESH = "iam-fresh"
"""The table of credentials that were seen in backends that renew."""
_PROMPT = re.compile(rb"(?:^|\n)(?:(?:master|\d+)(?:\([^)\n]*\))?)?> $")
"""A worker's own socket has no name in its prompt."""
_EACH_PROMPT = re.compile(_PROMPT.pattern[:-1])
_ROW = re.compile(r"^0x[0-9a-f]+: key=(?P<key>\S+) use=(?P<use>\d+) exp=(?P<exp>\d+) .*")
_DATA = re.compile(r"(gpt0|gpc0)=(\d+)")
_SESSION = re.compile(r"^(?P<pointer>0x[0-9a-f]+): proto=\S+ src=(?P<source>\S+) ", re.MULTILINE)
_NUMBERED = re.compile(r"^(?P<pointer>0x[0-9a-f]+): \[[^\]\n]*\] id=(?P<number>\d+) ", re.MULTILINE)
_WITHIN = 2.0
"""Seconds in which an answer, or its next piece, must come."""
_REMIND = 0.25
"""Seconds of silence within a list after which the master is reminded."""
_SILENT = 0.2
"""Seconds for a small question to a socket that did not answer the last time."""
KEPT = 5_000
"""Milliseconds that the table keeps an entry after its last change (`expire 5s` in haproxy.cfg)."""


_TOGETHER = 100
"""Commands that are sent at once."""
_MUCH = 200_000
"""Bytes of an answer beyond which it is read in a thread."""
_Parsed = TypeVar("_Parsed")

log = logging.getLogger("iamroles.live")


class ConsoleError(Exception):
    """The socket or a worker does not answer, or not as HAProxy's should."""


class TableMissingError(ConsoleError):
    """HAProxy has another configuration."""


async def parsed(parse: Callable[[str], _Parsed], answer: str) -> _Parsed:
    """Read an answer, in a thread if it is long, so that decisions go on meanwhile."""
    return await asyncio.to_thread(parse, answer) if len(answer) > _MUCH else parse(answer)


class Problems:
    """Logs a problem once, and once that it is over."""

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}

    def current(self) -> list[str]:
        return [problem for problem in self._logged.values() if problem]

    def report(self, about: str, problem: str = "") -> None:
        """Log what is wrong with something, "" for nothing."""
        if problem == self._logged.get(about, ""):
            return
        self._logged[about] = problem
        if problem:
            log.error(
                "live: %s. Streams are not cut there; HAProxy alone ends them at their expiry, but no "
                "busy body of a backend without streams = true",
                problem,
            )
        else:
            log.info("live: %s answers again", about)


@dataclass(frozen=True, slots=True)
class Stream:
    """An entry of a table: a request that waits or streams, alive or gone."""

    key: str
    number: int
    """The stream's number in its process; unique there, whatever address HAProxy knows the client by."""
    src: str
    port: int
    """0: unknown."""
    since: int
    """Epoch seconds: when the request or response turned out to be long; 0: unknown."""
    expires: int
    """Epoch seconds: the end of the credential that opened it."""
    ends: int
    """Epoch seconds: the end that stands in HAProxy; later than `expires` if it was renewed."""
    request_id: str
    ticket: str
    alive: bool
    filtered: bool
    """True if HAProxy's filter ended it."""
    age: float
    """Seconds since the entry's last change: since its end, if it has ended."""
    waits: bool = False
    """True if it comes from the table of all requests, which has neither its port nor its request id."""

    @property
    def source(self) -> str:
        return f"{self.src}:{self.port}"

    def decoded(self) -> Ticket | None:
        """Its ticket; None if it cannot be read."""
        try:
            return Ticket.decode(self.ticket)
        except TicketError:
            return None

    def let_in_by(self, agent: str) -> bool:
        """True if this agent wrote its ticket, or the ticket cannot be read."""
        ticket = self.decoded()
        return ticket is None or ticket.agent == agent


def _lines(answer: str, table: str, without: str) -> list[str]:
    if not answer.lstrip().startswith("# table:"):
        raise TableMissingError(f"it has no table {table}: {without}")
    return answer.splitlines()


def streams(answer: str) -> list[Stream]:
    """Entries in an answer to `show table iam-live`.

    A client behind the PROXY protocol may have port 0, which HAProxy writes as an empty word.

    Raises:
        TableMissingError: HAProxy does not have it.
    """
    without = "it does not run the configuration of `iamroles policy render`"
    found = []
    for line in _lines(answer, TABLE, without):
        if (match := _ROW.match(line.replace("\\=", "="))) is None:
            continue
        words = match["key"].split("|")
        if len(words) != 7 or not all(words[at].isdecimal() for at in (0, 3, 4)):
            continue
        data = {name: int(value) for name, value in _DATA.findall(line)}
        found.append(
            Stream(
                key=match["key"],
                number=int(words[0]),
                src=words[1],
                port=int(words[2]) if words[2].isdecimal() else 0,
                since=int(words[3]),
                expires=int(words[4]),
                ends=data.get("gpt0", int(words[4])),
                request_id=words[5],
                ticket=words[6],
                alive=match["use"] != "0",
                filtered=data.get("gpc0", 0) > 0,
                age=max(0, KEPT - int(match["exp"])) / 1000,
            )
        )
    return found


def waiting(answer: str, known: Container[int] = ()) -> list[Stream]:
    """Living entries in an answer to `show table iam-wait`, without these numbers.

    What has ended means nothing there.

    Raises:
        TableMissingError: HAProxy does not have it.
    """
    found = []
    for line in _lines(answer, WAITING, "render the configuration again by `iamroles policy render`"):
        if " use=0 " in line or (match := _ROW.match(line.replace("\\=", "="))) is None:
            continue
        number, bar, ticket = match["key"].partition("|")
        ends = dict(_DATA.findall(line)).get("gpt0")
        if bar and number.isdecimal() and int(number) not in known and ends is not None:
            head = (match["key"], int(number), _source_of(ticket), 0, 0, int(ends), int(ends))
            found.append(Stream(*head, "", ticket, alive=True, filtered=False, age=0.0, waits=True))
    return found


def _source_of(ticket: str) -> str:
    try:
        request = Ticket.decode(ticket).request
    except TicketError:
        return ""
    return "" if request is None else str(request.src)


def fresh(answer: str) -> list[tuple[str, str, int]]:
    """Credentials in an answer to `show table iam-fresh`: client address, first part of a ticket, expiry.

    Raises:
        TableMissingError: HAProxy does not have it.
    """
    without = "no stream is renewed there until it runs what `iamroles policy render` writes for this policy"
    found = []
    for line in _lines(answer, FRESH, without):
        if (match := _ROW.match(line)) is not None:
            src, bar, who = match["key"].partition("|")
            data = {name: int(value) for name, value in _DATA.findall(line)}
            if bar and who:
                found.append((src, who, data.get("gpt0", 0)))
    return found


def workers(answer: str) -> list[int]:
    """Process ids of the workers, old ones too, in an answer to `show proc`."""
    found = []
    for line in answer.splitlines():
        words = line.split()
        if len(words) > 1 and words[0].isdecimal() and words[1] == "worker":
            found.append(int(words[0]))
    if not found and "master" not in answer:
        raise ConsoleError("it is not a master CLI: HAProxy needs -W and -S")
    return found


def pointers(answer: str) -> dict[str, list[str]]:
    """Pointers of streams by client address, in an answer to `show sess`."""
    found: dict[str, list[str]] = {}
    for match in _SESSION.finditer(answer):
        found.setdefault(match["source"], []).append(match["pointer"])
    return found


def numbered(answer: str) -> dict[int, str]:
    """Pointers of streams by number, in an answer to `show sess all` or `show sess <pointer>`."""
    return {int(match["number"]): match["pointer"] for match in _NUMBERED.finditer(answer)}


def is_stream(answer: str, stream: Stream) -> bool:
    """Look whether an answer to `show sess <pointer>` is about a stream: by its number.

    The address may differ: behind the PROXY protocol HAProxy shows the sender's, and the table the client's.
    """
    return stream.number in numbered(answer)


class Console:
    """One connection at a time to the master CLI, or through it to one worker.

    Args:
        path: of the master's socket, or its `host:port`.
        pid: the worker; 0: the master itself.
    """

    def __init__(self, path: str, pid: int = 0) -> None:
        self._path, self._pid = path, pid
        self._silent = self._lists = False
        self.owed = 0
        """Answers of HAProxy that did not come in time: the connection stays, and takes them first.

        A master keeps a connection that the agent closes until the worker has answered, and takes only ten.
        """
        self._answer = bytearray()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def tell(self, commands: list[str]) -> None:
        """Send commands that have no answer, many at once, so that they cost one wait.

        Raises:
            ConsoleError: they are not taken in time.
        """
        for start in range(0, len(commands), _TOGETHER):
            await self.each(commands[start : start + _TOGETHER])

    async def ask(self, command: str) -> str:
        """Send a command, return its short answer.

        Raises:
            ConsoleError: the answer does not come in time.
        """
        return (await self.each([command]))[0]

    async def each(self, commands: list[str]) -> list[str]:
        """Send commands at once, return their short answers.

        Raises:
            ConsoleError: the answers do not come in time.
        """
        if not commands:
            return []
        async with self._within() as limit:
            await self._opened()
            return await self._exchange(commands, limit)

    async def read(self, command: str) -> str:
        """Send a command to a worker, return its answer, which may be long.

        Raises:
            ConsoleError: the answer does not come in time, or not whole.
        """
        async with self._within() as limit:
            self.close()  # a master whose others are taken may have room for one alone
            _, writer = self._streams = await self._connected()
            self._lists, self.owed = True, 1
            writer.write(f"@!{self._pid} {command}\n".encode())
            return (await self._rest(limit)).decode("utf-8", "replace")

    async def _rest(self, limit: asyncio.Timeout | None = None) -> bytearray:
        assert self._streams is not None  # noqa: S101 - opened
        reader, writer = self._streams
        answer = self._answer
        while not answer.endswith(b"\n\n"):
            try:
                async with asyncio.timeout(_REMIND):
                    piece = await reader.read(1 << 18)
            except TimeoutError:
                writer.write_eof()
                continue
            if not piece:
                raise ConsoleError("it closed the connection")
            answer += piece
            if limit is not None:
                limit.reschedule(asyncio.get_running_loop().time() + _WITHIN)
        self.close()
        return answer

    @asynccontextmanager
    async def _within(self) -> AsyncIterator[asyncio.Timeout]:
        """Limit the time of an answer.

        A silent socket is waited for once: from then on the answer that it owes, or that to a small question,
        comes first and has less time, so that a frozen worker does not hold up what is due in the others.
        """
        try:
            if self._silent:
                async with asyncio.timeout(_SILENT):
                    if self._lists:
                        await self._rest()
                    await self._opened()
                    await self._exchange(["show cli level"])
                self._silent = False
            async with asyncio.timeout(_WITHIN) as limit:
                yield limit
        except TimeoutError:
            self._silent = True
            raise ConsoleError(f"no answer within {_WITHIN:g} s") from None
        except OSError as error:
            self.close()
            raise ConsoleError(error.strerror or str(error)) from error
        except BaseException:
            self.close()
            raise

    async def _opened(self) -> None:
        if self._streams is not None:
            return
        self._streams = await self._connected()
        try:
            await self._exchange(["prompt"])
            if self._pid:
                await self._exchange([f"@!{self._pid}"])
        except BaseException:
            self.close()
            raise

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if "/" in self._path:
            return await asyncio.open_unix_connection(self._path, limit=1 << 20)
        host, _, port = self._path.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=1 << 20)

    async def _exchange(self, commands: list[str], limit: asyncio.Timeout | None = None) -> list[str]:
        assert self._streams is not None  # noqa: S101 - opened
        reader, writer = self._streams
        answer = self._answer
        if not self.owed:
            self.owed = len(commands)
            writer.write("".join(f"{command}\n" for command in commands).encode())
            await writer.drain()
        while True:
            piece = await reader.read(1 << 18)
            if not piece:
                self.close()
                raise ConsoleError("it closed the connection")
            answer += piece
            if limit is not None:
                limit.reschedule(asyncio.get_running_loop().time() + _WITHIN)
            prompt = _PROMPT.search(answer, max(0, len(answer) - 64))
            if prompt is None:
                continue
            found = [answer[: prompt.start()]] if self.owed == 1 else _EACH_PROMPT.split(answer)[:-1]
            if len(found) == self.owed:
                self.owed, self._answer = 0, bytearray()
                return [one.decode("utf-8", "replace") + "\n" for one in found]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams, self._lists, self.owed, self._answer = None, False, 0, bytearray()
