"""Who owns what is in force, and how everybody learns of it: the parent, its workers and its fetcher.

Theory of operation
-------------------
`iamroles agent run` is a family of processes. The **parent** has no event loop, no thread and no contact with
the outside. It owns the `Document`: numbered, made of named parts (the policy, a key set for each issuer,
revocations). **Workers** answer HAProxy. The **fetcher** is whoever goes out: it fetches keys, calls STS,
answers on the local socket and saves the document. A **loader** reads the configuration at SIGHUP, says what
is wrong or hands over the new policy, and ends. All of them are forks of the parent, so a newborn has what
the parent has, and the parent replaces whoever dies.

A change goes round in two phases. The parent sends the changed parts to all members; each builds what it
needs beside what is in force, and confirms. When all have confirmed, the parent commits: from here on the new
version is what newborns get. Then all switch, each in one step of its event loop, and confirm again. Whoever
refuses in the first phase ends the change: nothing has changed anywhere. Whoever misses a deadline is killed,
and the process in its place is born with what is in force. So a member is never behind for longer than a
deadline, and nobody waits for it longer than that.

Late, or starved? Each member answers a ping several times a second. Silence is counted on a clock that stands
still while the parent itself was not run, and the time that a member spent waiting for a processor is taken
off. Members are replaced for silence one at a time. So a frozen or looping member is replaced within two
seconds, and a starved host loses nobody.

What the files hold: `document` what is in force; `channel` the frames between the processes; `changes` and
`plane` the parent's side without its sockets, clock injected; `relay` what the parent only passes on;
`member` the other side; `store` the state directory. The shells are in `iamroles_agent.processes`.
"""
