"""Small worlds in which rules collide often, and slow readings of the specification to compare with.

They share nothing with the agent but the configuration's models: `matches` compares strings, as SPEC.md
sections 6 and 7 say it, and `verdict` is the suite's oracle.
"""

from ipaddress import ip_address, ip_network
from itertools import product

from hypothesis import strategies as st

from iamroles_agent.base.identity import Identity, Request, RoleArn
from iamroles_scenarios.checks.oracle.judge import judge

ARNS = {
    "r0": "arn:aws:iam::111111111111:role/r0",
    "r1": "arn:aws:iam::111111111111:role/r1",
    "r2": "arn:aws:iam::222222222222:role/r0",
}
STRANGER = "arn:aws:iam::333333333333:role/r0"
BACKENDS = ("b0", "b1")
METHODS = ("GET", "POST")
HOSTS = ("x.test", "*.x.test", "*.a.x.test", "y.test")
SOURCES = ("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32")
NETWORKS = {text: ip_network(text) for text in SOURCES}
PATHS = ("/", "/a", "/b", "/a/a", "/a/b", "/a/a/b")


def requests(hosts, paths, sources):
    asked = product((*METHODS, "PUT"), ("", *hosts, "other.test", "no host"), paths, map(ip_address, sources))
    return [Request(*one) for one in asked]


REQUESTS = requests(
    ("x.test", "q.x.test", "q.a.x.test", "y.test"),
    (*PATHS, "/z", "/a/z", "/a/a/z", "/a/a/b/z", "/b/z", "/a/b/z", "/ab"),
    ("10.0.0.1", "10.1.0.1", "192.0.2.1", "2001:db8::1", "2001:db9::1"),
)
"""At least one request of each kind that rules of these worlds can tell apart."""

NARROW_HOSTS, NARROW_SOURCES = ("x.test", "*.x.test"), ("10.0.0.0/8",)
NARROW_PATHS = ("/", "/a", "/a/b", "/b")
NARROW_REQUESTS = requests(
    ("x.test", "q.x.test"), (*NARROW_PATHS, "/z", "/a/z", "/a/b/z", "/b/z"), ("10.0.0.1", "192.0.2.1")
)
"""The same for narrow worlds, for tests that try every request under many policies."""

BASE = {
    "version": 1,
    "issuers": [{"name": "idp", "issuer": "https://idp.test", "audiences": ["api"], "algorithms": ["RS256"]}],
    "roles": [{"name": name, "arn": arn} for name, arn in ARNS.items()],
    "backends": [{"name": name} for name in BACKENDS],
}


def some(values, least=1):
    return st.lists(st.sampled_from(values), min_size=least, max_size=2, unique=True)


def regions(*, narrow):
    return {
        "methods": st.one_of(st.just(["*"]), some(METHODS)),
        "path": st.sampled_from(NARROW_PATHS if narrow else PATHS),
        "match": st.sampled_from(["prefix", "prefix", "exact"]),
        "hosts": st.one_of(st.just([]), some(NARROW_HOSTS if narrow else HOSTS)),
        "sources": st.one_of(st.just([]), some(NARROW_SOURCES if narrow else SOURCES)),
    }


def numbered(prefix, rules):
    return [{"id": f"{prefix}{index}", **rule} for index, rule in enumerate(rules)]


def worlds(grants=5, denies=3, *, consistent=True, shadow=False, narrow=False):
    """Configurations as data. Consistent: the backend follows from the path, so that no grants conflict."""
    flag = st.booleans() if shadow else st.just(False)
    roles, rule = some(tuple(ARNS)), {**regions(narrow=narrow), "shadow": flag}
    grant = st.fixed_dictionaries({**rule, "roles": roles, "backend": st.sampled_from(BACKENDS)})
    deny = st.fixed_dictionaries({**rule, "roles": st.one_of(st.just(["*"]), roles)})

    def assemble(g, d, multi):
        if consistent:
            for rule in g:
                rule["backend"] = BACKENDS[(PATHS.index(rule["path"]) + (rule["match"] == "exact")) % 2]
        return {**BASE, "multi_role": multi, "grants": numbered("g", g), "denies": numbered("d", d)}

    return st.builds(
        assemble,
        st.lists(grant, min_size=1, max_size=grants),
        st.lists(deny, max_size=denies),
        st.sampled_from(["deny", "union"]),
    )


def identities():
    arns = tuple(RoleArn.parse(text) for text in (*ARNS.values(), STRANGER))
    return st.builds(
        lambda roles, preferred: Identity("idp", "me", "s", tuple(roles), 2000, 1000, preferred),
        st.lists(st.sampled_from(arns), min_size=1, max_size=3, unique=True),
        st.one_of(st.none(), st.sampled_from(arns)),
    )


def matches(rule, request, *, deny):
    """SPEC.md: methods, path by whole segments, hosts, sources."""
    if "*" not in rule.methods and request.method not in rule.methods:
        return False
    wanted = [part for part in rule.path.split("/") if part]
    asked = [part for part in request.path.split("/") if part]
    if asked != wanted if rule.match == "exact" else asked[: len(wanted)] != wanted:
        return False
    if rule.hosts:
        if not request.host or " " in request.host:
            if not deny:  # DENY-ERROR-001: cannot be decided
                return False
        elif not any(_host(pattern, request.host) for pattern in rule.hosts):
            return False
    networks = getattr(rule, "sources", [])
    return not networks or any(request.src in NETWORKS[text] for text in networks)


def _host(pattern, host):
    return host.endswith(pattern[1:]) if pattern.startswith("*") else host == pattern


def verdict(data, identity, request):
    """Reason or "allow", rule, backend, as the suite's oracle judges."""
    issuers = [data["issuers"][0] | {"preferred_role_claim": "preferred"}]
    claims = {"roles": list(map(str, identity.roles)), "iat": 1000, "exp": 2000}
    claims |= {"preferred": str(identity.preferred)} if identity.preferred else {}
    asked = {"method": request.method, "host": request.host, "path": request.path, "src": str(request.src)}
    found = judge(data | {"issuers": issuers}, claims, asked | {"role": request.requested_role}, 1500)
    return found.reason or "allow", min(found.rules, default=""), found.backend
