"""Live streams: access dies with the credential, also while a request or response is under way.

Theory of operation
-------------------
Three layers, each sound without the next (docs/live.md):

- timeouts in HAProxy, shortened to the credential's end, close what is silent;
- a filter in HAProxy (`haproxy/iam-live.lua`) ends what is busy and what is silent in backends with streams;
- this package cuts what was revoked, closes what the other two do not reach, and records every end.

The registry of requests is HAProxy's, not ours. Each request that was allowed has an entry in the table
`iam-wait` of the worker process that carries it: its number and a **ticket**. The agent writes the ticket
with its verdict (`txn.iam.ticket`), and it holds what an agent needs to judge the request again. A request
that may outlive its credential has an entry in `iam-live` as well, whose key holds number, address, since,
until, request id and ticket. Both are in use exactly as long as the stream lives. So an agent that was
restarted, or whose neighbour died, learns all streams by reading the tables; nothing is kept twice, and the
agent needs no bound of its own. Every request is in a list at every moment, however long its answer takes.

The agent reads the tables through HAProxy's *master* CLI, because after a reload the old streams are in the
old worker, which cannot be reached otherwise. `show table iam-live data.gpt0 lt <second>` lists what is due,
so the agent walks over all streams only when something has changed; then it reads all once and judges them by
policy, key sets and revocations in force. What has ended is read last, for the record alone.

A cut finds the stream by its number, which is unique in a process, whatever address HAProxy knows the client
by (`shutdown`), and looks at the number right before `shutdown session`: pointers are recycled. Between that
look and the cut lies one exchange on a Unix socket; HAProxy offers nothing atomic there. `shutdown session`
does nothing to a tunnel whose client has closed its side: then the next look puts an end into the stream's
entry, which the filter obeys.

Several agents read the same table. The agent that wrote the ticket acts at once; the others act a moment
later on what is still there, so one lost agent loses nothing and two living ones seldom meet.
"""
