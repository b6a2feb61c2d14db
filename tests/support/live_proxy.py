"""A HAProxy of text, for a cutter: its streams, the credentials that it saw, and a clock."""

from dataclasses import dataclass

from iamroles_agent.live.console import FRESH, KEPT, ConsoleError
from iamroles_agent.live.cutter import Cutter

SRC = "192.0.2.1"


@dataclass
class Row:
    """A stream: where it comes from, the end of its credential, and when it ended, if it has."""

    port: int
    expires: int
    ended: float | None = None
    ends: int = 0
    """The end that stands in the table."""

    def __post_init__(self):
        self.ends = self.expires


class Proxy:
    """It stands for each console that the cutter opens."""

    def __init__(self, ticket, now):
        self.ticket, self.now = ticket.encode(), now
        self.streams, self.seen = {}, []
        self.asked, self.cuts, self.renewed = [], [], []
        self.silent = False

    def __call__(self, path, pid=0):
        return self

    def close(self):
        pass

    async def tell(self, commands):
        for command in commands:
            await self.ask(command)

    async def ask(self, command):
        self.asked.append(command)
        if self.silent:
            raise ConsoleError("no answer within 2 s")
        return self.answer(command)

    def answer(self, command):
        alive = {n: row for n, row in self.streams.items() if row.ended is None}
        match command.split():
            case ["show", "proc"]:
                return "1 master\n2 worker\n"
            case ["show", "table", table, *_] if table == FRESH:
                rows = (f"0x1: key={SRC}|{who} use=0 exp=9 gpt0={ends}\n" for who, ends in self.seen)
                return f"# table: {FRESH}\n" + "".join(rows)
            case ["show", "table", _, *which]:
                below = float(which[-1] if "lt" in which else "inf")
                rows = (self._line(n) for n, row in self.streams.items() if row.ends < below)
                return f"# table: iam-live, used:{len(self.streams)}\n" + "".join(rows)
            case ["show", "sess"]:
                return "".join(
                    f"0x{n:x}: proto=tcpv4 src={SRC}:{row.port} fe=x\n" for n, row in alive.items()
                )
            case ["show", "sess", pointer]:
                n = int(pointer, 16)
                return f"{pointer}: [x] id={n} proto=tcpv4 source={SRC}:{self.streams[n].port}\n"
            case ["set", "table", "iam-live", _, key, _, ends]:
                self.streams[int(key.partition("|")[0])].ends = int(ends)
            case ["shutdown", _, pointer]:
                self.streams[int(pointer, 16)].ended = self.now
            case ["clear", "table", *_, key]:
                del self.streams[int(key.partition("|")[0])]
        return ""

    def _line(self, n):
        row = self.streams[n]
        key = f"{n}|{SRC}|{row.port}|1000|{row.expires}|r{n}|{self.ticket}"
        age = 0 if row.ended is None else self.now - row.ended
        use, exp = int(row.ended is None), KEPT - round(1000 * age)
        return f"0x1: key={key} use={use} exp={exp} gpt0={row.ends} gpc0=0\n"

    def cutter(self, judge, name="iam/aa", record=None, **more):
        return Cutter("/m", name, judge, record or self.cuts.append, clock=lambda: self.now, **more)
