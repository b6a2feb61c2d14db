"""The state in force, and how parent, workers and fetcher put a change in force.

Theory of operation
-------------------
`iamroles agent run` is a family of processes. The **parent** has no event loop, no thread and no contact with
the outside. It owns the `Document`: numbered, made of named parts (the policy, a key set for each issuer,
revocations). **Workers** answer HAProxy. The **fetcher** has the outside contacts: it fetches keys, calls
STS, answers on the local socket and saves the document. A **loader** reads the configuration at SIGHUP,
reports what is wrong or hands over the new policy, and ends. All of them are forks of the parent, so a new
member has what the parent has, and the parent replaces a member that dies.

A change takes two phases. The parent sends the changed parts to all members; each builds what it needs beside
what is in force, and confirms. When all have confirmed, the parent commits: from here on the new version is
what new members get. Then all switch, each in one step of its event loop, and confirm again. A member that
refuses in the first phase ends the change: nothing has changed anywhere. The parent kills a member that
misses a deadline, and the next process in its slot starts with what is in force. So a member is never behind
for longer than a deadline, and the others never wait for it longer than that.

Late, or starved? Each member answers a ping several times a second. Silence is counted on a clock that stands
still while the parent itself did not run, less the time that the member spent waiting for a CPU. Members are
replaced for silence one at a time. So a frozen or looping member is replaced within two seconds, and a host
without CPU to spare loses none.

The files: `document` is what is in force; `channel` the frames between the processes; `slots` who lives,
`changes` a change, `reloads` the loader, `relay` questions of workers, and `plane` all of these as the parent
sees them, without its sockets, clock injected; `member` is the other side; `store` the state directory. The
shells are in `iamroles_agent.processes`.
"""
