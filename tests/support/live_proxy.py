"""A HAProxy of text, for a cutter: its streams, the credentials that it saw, and a clock."""

import asyncio
from dataclasses import dataclass
from operator import eq, gt, lt

from iamroles_agent.live import cutter, proxy_worker
from iamroles_agent.live.console import FRESH, KEPT, TABLE, ConsoleError

SRC = "192.0.2.1"


@dataclass
class Row:
    """A stream: where it comes from, the end of its credential, and when it ended, if it has."""

    port: int
    expires: int
    ended: float | None = None
    ends: int = 0
    """The end that stands in the table."""
    ticket: str = ""
    """Empty: the proxy's own."""

    def __post_init__(self):
        self.ends = self.expires


class FrozenConsole:
    """A console to a worker without streams that answers once it goes on."""

    owed = 0

    def __init__(self, goes_on):
        self._goes_on = goes_on

    async def ask(self, command):
        await self._goes_on.wait()
        return f"# table: {command.split()[2]}\n"

    read = ask

    async def tell(self, commands):
        assert commands == []

    def close(self):
        pass


class Proxy:
    """It stands for each console that the cutter opens."""

    def __init__(self, ticket, now):
        self.ticket, self.now = ticket.encode(), now
        self.streams, self.seen, self.waits = {}, [], {}
        """Long streams, credentials that were seen, and requests that wait: by number."""
        self.hidden, self.lists = set(), True
        """Numbers that `show sess` does not show; whether HAProxy lists the requests that wait."""
        self.sender = None
        """The address of every stream in `show sess`, in place of the client's."""
        self.asked, self.cuts, self.renewed = [], [], []
        self.silent = False
        self.frozen = None
        """An event: worker 3, which has no streams, answers nothing before it."""
        self.rows = 0
        """Rows of tables that were shown."""

    def installed(self, monkeypatch):
        for module in (cutter, proxy_worker):
            monkeypatch.setattr(module, "Console", self)
        return self

    def __call__(self, path, pid=0):
        return FrozenConsole(self.frozen) if pid == 3 else self

    def close(self):
        pass

    async def each(self, commands):
        return [await self.ask(command) for command in commands]

    tell = each

    async def ask(self, command):
        self.asked.append(command)
        await asyncio.sleep(0)  # other connections have their turn
        if self.silent:
            raise ConsoleError("no answer within 2 s")
        return self.answer(command)

    read = ask

    def answer(self, command):
        alive = {n: row for n, row in {**self.waits, **self.streams}.items() if row.ended is None}
        alive = {n: row for n, row in alive.items() if n not in self.hidden}
        match command.split():
            case ["show", "proc"]:
                return "1 master\n2 worker\n" + "3 worker\n" * (self.frozen is not None)
            case ["show", "table", table, *_] if table == FRESH:
                rows = (f"0x1: key={SRC}|{who} use=0 exp=9 gpt0={ends}\n" for who, ends in self.seen)
                return f"# table: {FRESH}\n" + "".join(rows)
            case ["show", "table", table, *which] if table == TABLE or self.lists:
                held = self.streams if table == TABLE else self.waits
                rows = [self._line(n, held[n], table) for n in self._chosen(held, which)]
                self.rows += len(rows)
                return f"# table: {table}, used:{len(held)}\n" + "".join(rows)
            case ["show", "sess"]:
                return "".join(
                    f"0x{n:x}: proto=tcpv4 src={self.sender or f'{SRC}:{row.port}'} fe=x\n"
                    for n, row in alive.items()
                )
            case ["show", "sess", "all"]:
                return "".join(map(self._session, alive))
            case ["show", "sess", pointer]:
                return self._session(int(pointer, 16))
            case ["set", "table", table, _, key, _, ends] if table != FRESH:
                held = self.streams if table == TABLE else self.waits
                if (row := held.get(int(key.partition("|")[0]))) is not None:
                    row.ends = int(ends)
            case ["shutdown", _, pointer]:
                number = int(pointer, 16)
                (self.streams.get(number) or self.waits[number]).ended = self.now
            case ["clear", "table", _, "key", key]:
                del self.streams[int(key.partition("|")[0])]
            case ["clear", "table", _, *which]:
                for n in self._chosen(self.streams, which):
                    del self.streams[n]
        return ""

    def _chosen(self, held, which):
        """Numbers of the rows that pass the filters of a command."""
        found = dict(held)
        for name, sign, value in zip(which[::3], which[1::3], which[2::3], strict=True):
            compare = {"gt": gt, "lt": lt, "eq": eq}[sign]
            for n, row in list(found.items()):
                has = {"data.gpt0": row.ends, "data.conn_cur": int(row.ended is None), "data.gpc0": 0}
                if not compare(has[name], int(value)):
                    del found[n]
        return list(found)

    def _session(self, n):
        row = self.streams.get(n) or self.waits[n]
        return f"0x{n:x}: [x] id={n} proto=tcpv4 source={self.sender or f'{SRC}:{row.port}'}\n"

    def _line(self, n, row, table):
        key = f"{n}|{SRC}|{row.port}|1000|{row.expires}|r{n}|{row.ticket or self.ticket}"
        if table != TABLE:
            key = f"{n}|{row.ticket or self.ticket}"
        age = 0 if row.ended is None else self.now - row.ended
        use, exp = int(row.ended is None), KEPT - round(1000 * age)
        return f"0x1: key={key} use={use} exp={exp} gpt0={row.ends} gpc0=0\n"

    async def looked(self, cutter, *times):
        """Let a cutter look at each of these times."""
        for self.now in times:
            await cutter.look()

    def cutter(self, judge, name="iam/aa", record=None, **more):
        return cutter.Cutter("/m", name, judge, record or self.cuts.append, clock=lambda: self.now, **more)
