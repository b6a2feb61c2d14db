"""Render a policy for HAProxy Technologies' ingress controller (docs/kubernetes.md): one file of YAML.

The controller writes HAProxy's frontends and backends itself. It takes pieces of configuration from keys of
its ConfigMap, and HAProxy loads one folder more. So the rules of `haproxy.cfg` become two pieces, with these
differences: they name no variable of the environment, they leave the choice of a backend to the controller,
and they refuse a path that would have to be rewritten: the controller chose by the path as it was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError, Problem
from iamroles_agent.policy.compiled import version_of
from iamroles_tools.haproxy import render

AUX = "/etc/haproxy/haproxy-aux.cfg"
"""The folder in which our ConfigMap is mounted. The controller's HAProxy loads its files named `*.cfg`."""
HOME = "/etc/haproxy-iam-roles"
"""The policy's directory in a pod of the agent."""
_PEER = "unix@/var/run/iam-peer.sock mode 600"
"""Beside the sockets of the controller's own HAProxy."""
USER = 65532
"""The user of the agent's image."""
_SECRETS = "iam-agent-secrets"
"""The Secret with the files that all agents share (`_secrets`)."""
_WRITABLE = ("run", "var/lib", "var/log")
"""Each has a directory `iamroles` that the agent may write; the root is read-only."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")
_PAIR = re.compile(rf"{_LABEL.pattern}/{_LABEL.pattern}(\.{_LABEL.pattern})*")
_LARGEST = 1_000_000
"""Bytes that a ConfigMap or Secret holds, less what its other fields need."""
_OTHERS = re.compile(
    r"bind |use_backend |default_backend |log-format |http-request set-var\(txn\.iam_path\)|.*iam_tunnel|"
    r".*(track-sc[02]|sc-set-gpt0|sc_get_gpt0|iam_note_full|iam_live|iam_wait|iam_remedy)"
)
"""Rules that have no place here: what the controller decides, the record, and the tables of open streams."""
_REWRITTEN = "http-request set-pathq %[path]?%[var(txn.iam_query)] if iam_odd iam_query\n"
_SENT = "http-request set-var(txn.iam_path_sent) path\n"
_AS_SENT = (
    "http-request set-var(txn.iam.reason) str(path_ambiguous) "
    "if iam_odd !{ path,strcmp(txn.iam_path_sent) eq 0 }\n"
)
_LONG = "!{ internal.htx.has_eom }"
"""No table has the open streams here, so what is not whole when its headers are is one."""
_PROTO = "http-request set-header X-Forwarded-Proto https if { ssl_fc }\n"
_Settle = Callable[[str], str]
"""Writes what the policy, the options and the release say into a shipped text."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]")
_WORD = re.compile(r"(?!(true|false|null|yes|no|on|off|y|n|none)$)[A-Za-z/][A-Za-z0-9./_-]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The operator's choices about the cluster."""

    image: str
    namespace: str = "iam"
    """The agents' namespace. Their objects are named `iam-agent`."""
    controller: str = "haproxy-controller/haproxy-kubernetes-ingress"
    """Namespace and ConfigMap of the ingress controller."""
    domain: str = "cluster.local"
    replicas: int = 2
    client_ca: str | None = None
    """Namespace and Secret of the authorities that issue clients' certificates."""
    secret: bool = False
    """The policy is a Secret, not a ConfigMap."""


def manifests(config: Config, policy: Path, settings: render.Settings, cluster: Cluster) -> str:
    """Make the YAML documents.

    Args:
        config: what the policy file says.
        policy: the file itself, which goes into the pods as it is.
        settings: of HAProxy; `haproxy` is the controller's release, `agents` the port.
        cluster: where all this runs.

    Raises:
        ConfigError: a pod cannot use the policy, or an option cannot be used; each with its key.
        OSError: the file cannot be read.
    """
    text = policy.read_text(encoding="utf-8")
    problems = [*_unfit(config, cluster, policy.name, len(text.encode())), *_misplaced(config, policy.name)]
    problems += _wrong(cluster)
    port = _port(config)
    host = f"iam-agent.{cluster.namespace}.svc.{cluster.domain}"
    settings = replace(settings, agents=(f"{host}:{port or 9901}",))
    if problems := [*problems, *render.unusable(config, settings, settings.agents)]:
        raise ConfigError(problems)
    values = render.environment(config, settings) | {"IAM_PEER": _PEER}
    settle = partial(render.for_release, release=str(settings.haproxy), values=values)
    files = beside(settle, settings, cluster)
    name = "policy.json" if policy.suffix == ".json" else "policy.toml"
    objects = [
        _controller(settle, cluster),
        _object("ConfigMap", "iam-haproxy", cluster.controller.partition("/")[0]) | {"data": files},
        _policy(cluster, name, text),
        _deployment(config, cluster, name, port),
        *_services(config, cluster, port),
    ]
    head = (
        f"# Written by `iamroles policy render --for kubernetes-ingress` from {json.dumps(policy.name)},\n"
        f"# for HAProxy {settings.haproxy}: change the policy, not this file (docs/kubernetes.md).\n"
    )
    return head + "".join(f"---\n{''.join(_block(one))}" for one in objects)


# --- what HAProxy runs --------------------------------------------------------------------------------------


def frontend(settle: _Settle) -> str:
    """Return the gate's rules as the controller's key `frontend-config-snippet` takes them.

    They refuse streams too: the controller goes on without a faulty snippet of the backends.
    """
    text = _rules("frontend iam-gate", settle).replace("config iam.spoe.cfg", f"config {AUX}/iam.spoe")
    text += _stripped(
        render.shipped("no-streams.cfg").replace("{ var(txn.iam_live) -m found }", _LONG), settle
    )
    text = text.replace(" iam_note_upgrades", "").replace(" iam_note_events", "")
    return _SENT + text.replace(_REWRITTEN, _REWRITTEN + _AS_SENT) + _PROTO


def backend(settle: _Settle) -> str:
    """Return the rules of each backend, for `backend-config-snippet`: access ends."""
    return _rules("defaults iam-routes", settle)


def _rules(section: str, settle: _Settle) -> str:
    """Return the rules of a section of `haproxy.cfg`, one a line and without comments."""
    sections = re.split("^(?=backend|frontend|defaults)", render.shipped("haproxy.cfg"), flags=re.MULTILINE)
    (found,) = (one for one in sections if one.startswith(section))
    return _stripped(found.partition("\n")[2], settle)


def _stripped(text: str, settle: _Settle) -> str:
    lines = [line.strip() for line in settle(text).splitlines()]
    return "".join(f"{line}\n" for line in lines if line and line[0] != "#" and not _OTHERS.match(line))


def beside(settle: _Settle, settings: render.Settings, cluster: Cluster) -> dict[str, str]:
    """Return the files beside the controller's own: agents, used proofs, and the SPOE configuration."""
    tls = render.agent_tls(settings, settings.agents[0])
    server = f"server-template agent {max(4, 2 * cluster.replicas)} {settings.agents[0]}{tls}"
    agents = render.shipped("agents.cfg").partition("backend iam-agents")
    text = "".join(agents[1:]).replace("{servers}", f"    {server} resolvers iam-dns init-addr none")
    proofs = render.shipped("haproxy.cfg").rpartition("\n\n.if ")
    aux = f"""\
defaults iam-defaults
    mode http
    timeout client  30s
    timeout connect 3s
    timeout server  60s

# The addresses of the agents' pods, which the headless Service names.
resolvers iam-dns
    parse-resolv-conf
    accepted_payload_size 8192
    hold valid    5s
    hold obsolete 10s

{text}{"".join(proofs[1:])}"""
    return {
        "haproxy-aux.cfg": render.guard(str(settings.haproxy)) + settle(aux).rstrip() + "\n",
        "iam.spoe": settle(render.shipped("iam.spoe.cfg")),
    }


# --- what Kubernetes runs -----------------------------------------------------------------------------------


def _object(kind: str, name: str, namespace: str, version: str = "v1") -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "iam-agent", "app.kubernetes.io/part-of": "haproxy-iam-roles"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


_PODS = {"matchLabels": {"app.kubernetes.io/name": "iam-agent"}}


def _controller(settle: _Settle, cluster: Cluster) -> dict[str, Any]:
    namespace, _, name = cluster.controller.partition("/")
    found = _object("ConfigMap", name, namespace)
    del found["metadata"]["labels"]  # it is the controller's
    return found | {
        "data": {
            "global-config-snippet": "expose-experimental-directives\n",
            "frontend-config-snippet": frontend(settle),
            "backend-config-snippet": backend(settle),
            **({"client-ca": cluster.client_ca, "client-crt-optional": "true"} if cluster.client_ca else {}),
        }
    }


def _policy(cluster: Cluster, name: str, text: str) -> dict[str, Any]:
    if cluster.secret:
        return _object("Secret", "iam-policy", cluster.namespace) | {"stringData": {name: text}}
    return _object("ConfigMap", "iam-policy", cluster.namespace) | {"data": {name: text}}


def _deployment(config: Config, cluster: Cluster, name: str, port: int | None) -> dict[str, Any]:
    source = {"secret": {"name": "iam-policy"}} if cluster.secret else {"configMap": {"name": "iam-policy"}}
    more = ["iam-agent-tls"] * (config.agent.tls is not None) + [_SECRETS] * bool(_secrets(config))
    sources = [source, *({"secret": {"name": one}} for one in more)]
    ports = [{"name": "spop", "containerPort": port}]
    if metrics := _reachable(config.metrics.listen):
        ports.append({"name": "metrics", "containerPort": metrics})
    probed = _sockets(config)[:1] if config.agent.tls else ["--config", f"{HOME}/{name}"]
    container = {
        "name": "agent",
        "image": cluster.image,
        "args": ["agent", "run", "--config", f"{HOME}/{name}"],
        "ports": ports,
        "startupProbe": _probe(probed, "startup", period=2, failures=30),
        "readinessProbe": _probe(probed, "readiness", period=5, failures=2),
        "livenessProbe": _probe(probed, "liveness", period=10, failures=6),
        "resources": {
            "requests": {"cpu": "250m", "memory": "192Mi"},
            "limits": {"memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "policy", "mountPath": HOME, "readOnly": True},
            *(
                {"name": "scratch", "mountPath": f"/{at}/iamroles", "subPath": at.replace("/", "-")}
                for at in _WRITABLE
            ),
        ],
    }
    return _object("Deployment", "iam-agent", cluster.namespace, "apps/v1") | {
        "spec": {
            "replicas": cluster.replicas,
            "selector": _PODS,
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": _PODS["matchLabels"],
                    # Another policy is another pod: no signal says that a mounted file changed.
                    "annotations": {"haproxy-iam-roles/policy": version_of(config)},
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": round(config.agent.drain_timeout) + 20,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "runAsGroup": USER,
                        "fsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": _PODS,
                        }
                    ],
                    "containers": [container],
                    "volumes": [
                        {"name": "policy", "projected": {"defaultMode": 0o440, "sources": sources}},
                        {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
                    ],
                },
            },
        }
    }


def _probe(probed: list[str], purpose: str, *, period: int, failures: int) -> dict[str, Any]:
    words = ["iamroles", "agent", "probe", *probed, "--for", purpose, "--timeout", "4"]
    seconds = {"periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
    return {"exec": {"command": words}, **seconds}


def _services(config: Config, cluster: Cluster, port: int | None) -> Iterator[dict[str, Any]]:
    metrics = _reachable(config.metrics.listen)
    ports = [{"name": "spop", "port": port}, *([{"name": "metrics", "port": metrics}] if metrics else [])]
    yield _object("Service", "iam-agent", cluster.namespace) | {
        # Without an address of its own: its name has those of all pods that are ready.
        "spec": {"clusterIP": "None", "selector": _PODS["matchLabels"], "ports": ports}
    }
    yield _object("PodDisruptionBudget", "iam-agent", cluster.namespace, "policy/v1") | {
        "spec": {"maxUnavailable": 1, "selector": _PODS}
    }
    space = {"matchLabels": {"kubernetes.io/metadata.name": cluster.controller.partition("/")[0]}}
    proxies = {"matchLabels": {"app.kubernetes.io/name": "kubernetes-ingress"}}
    asked: list[dict[str, Any]] = [
        {"from": [{"namespaceSelector": space, "podSelector": proxies}], "ports": [{"port": port}]}
    ]
    if metrics:
        asked.append({"ports": [{"port": metrics}]})
    names = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    urls = [*(one.jwks_uri or one.issuer for one in config.issuers), *(one.endpoint for one in config.sts)]
    known = {url.port or (80 if url.scheme == "http" else 443) for url in map(urlsplit, urls)}
    yield _object("NetworkPolicy", "iam-agent", cluster.namespace, "networking.k8s.io/v1") | {
        "spec": {
            "podSelector": _PODS,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": asked,
            # Issuers' keys and STS; 443 also for keys whose address an issuer's metadata names.
            "egress": [{"ports": names}, {"ports": [{"port": one} for one in sorted(known | {443})]}],
        }
    }
    if metrics:
        yield _object("ServiceMonitor", "iam-agent", cluster.namespace, "monitoring.coreos.com/v1") | {
            "spec": {"selector": _PODS, "endpoints": [{"port": "metrics", "interval": "30s"}]}
        }


# --- what cannot be rendered --------------------------------------------------------------------------------


def _reachable(listen: str) -> int | None:
    """Return the port of a TCP address that other pods can reach."""
    host, _, port = listen.rpartition(":")
    if listen.startswith("unix:") or not port.isdecimal() or int(port) == 0:
        return None
    return None if host.strip("[]").startswith(("127.", "::1", "localhost")) else int(port)


def _port(config: Config) -> int | None:
    return next(filter(None, map(_reachable, config.agent.addresses)), None)


def _sockets(config: Config) -> list[str]:
    return [one for one in config.agent.addresses if config.agent.listen and one.startswith("unix:")]


def _unfit(config: Config, cluster: Cluster, source: str, size: int) -> Iterator[Problem]:
    """Find what a policy says that no pod can do."""
    if _port(config) is None:
        remedy = 'Write listen = "0.0.0.0:9901", or "[::]:9901"'
        yield Problem(source, "agent.listen", "no address that HAProxy reaches from another pod", remedy)
    for table, key in (("live", "master_socket"), ("live", "revocations"), ("agent", "shadow_policy")):
        if getattr(getattr(config, table), key) is not None:
            remedy = "Leave it out (docs/kubernetes.md)"
            yield Problem(source, f"{table}.{key}", "a pod has no such file", remedy)
    if config.agent.tls is not None:
        if not _sockets(config):
            wrong = "a pod's probes may have no certificate that [agent.tls] accepts"
            yield Problem(source, "agent.listen", wrong, 'Add "unix:/run/iamroles/agent.sock" for them')
        for key in ("certificate", "ca"):
            if "/" in (file := getattr(config.agent.tls, key)):
                remedy = "Name the key of the Secret iam-agent-tls, which lies beside the policy"
                yield Problem(source, f"agent.tls.{key}", f"{file!r} is not beside the policy", remedy)
    proven = config.dpop or config.client_certificate or cluster.client_ca
    for index, issuer in enumerate(config.issuers):
        if issuer.bound != "refused" and not proven:
            remedy = "Give --client-ca, or write [dpop] or [client_certificate] (docs/kubernetes.md)"
            yield Problem(source, f"issuers[{index}].bound", "no token could be proven here", remedy)
    yield from _unshared(config, cluster, source)
    for index, one in enumerate(config.backends):
        if one.streams:
            remedy = "Leave it out: behind the controller streams are refused (docs/kubernetes.md)"
            yield Problem(source, f"backends[{index}].streams", "nothing would end a stream here", remedy)
    if size > _LARGEST:
        yield Problem(source, "", f"{size:,} bytes", f"A ConfigMap or Secret holds {_LARGEST:,}")


def _secrets(config: Config) -> dict[str, str]:
    """Return the files of secrets that all agents share, by the keys that name them."""
    found = {
        "identity_header.secrets": config.identity_header.secrets if config.identity_header else None,
        "dpop.nonce_key": config.dpop.nonce_key if config.dpop else None,
    }
    return {key: file for key, file in found.items() if file is not None}


def _unshared(config: Config, cluster: Cluster, source: str) -> Iterator[Problem]:
    """Find what pods must share, and do not, or not from a Secret."""
    yield from render.unshared(config, cluster.replicas, source)
    nonces = config.binds and config.dpop is not None and config.dpop.nonce
    if nonces and cluster.replicas > 1 and "dpop.nonce_key" not in _secrets(config):
        remedy = f"Name the key of the Secret {_SECRETS}, or give --replicas 1 (docs/kubernetes.md)"
        yield Problem(source, "dpop.nonce_key", "each pod would have nonces of its own", remedy)
    for key, file in _secrets(config).items():
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", file):
            remedy = f"Name the key of the Secret {_SECRETS}, which lies beside the policy"
            yield Problem(source, key, f"{file!r} is not beside the policy", remedy)


def _misplaced(config: Config, source: str) -> Iterator[Problem]:
    """Find what a policy puts where a pod cannot write."""
    files = [("agent.listen", one.removeprefix("unix:")) for one in _sockets(config)]
    files += [(f"agent.{key}", getattr(config.agent, key)) for key in ("state_dir", "control_socket")]
    files += [("audit.path", config.audit.path)] if config.audit.path not in ("none", "stderr") else []
    homes = [f"/{at}/iamroles" for at in _WRITABLE]
    for key, file in files:
        if file is not None and not any(render.is_below(file, home) for home in homes):
            remedy = f"Write a full path below {', '.join(homes)}"
            yield Problem(source, key, f"{file!r} cannot be written in a pod", remedy)


def _wrong(cluster: Cluster) -> Iterator[Problem]:
    """Find options that Kubernetes would refuse, or that would add words to HAProxy's configuration."""
    remedy = "Use lower-case letters, digits and '-', 50 at most"
    for option, kind, text in (
        ("--controller", "CONFIGMAP", cluster.controller),
        ("--client-ca", "SECRET", cluster.client_ca),
    ):
        if text is not None and not _PAIR.fullmatch(text):
            yield Problem("command line", option, f"{text!r} is not NAMESPACE/{kind}", remedy)
    if not _LABEL.fullmatch(cluster.namespace):
        yield Problem("command line", "--namespace", f"{cluster.namespace!r} is not a name", remedy)
    if not all(map(_LABEL.fullmatch, cluster.domain.split("."))):
        yield Problem("command line", "--cluster-domain", f"{cluster.domain!r} is not a domain", remedy)
    if not re.fullmatch(r"[!-~]{1,500}", cluster.image):
        yield Problem(
            "command line", "--image", f"{cluster.image!r} is not an image", "Write registry/name:tag"
        )


# --- YAML ---------------------------------------------------------------------------------------------------


def _block(value: Any, indent: str = "") -> Iterator[str]:  # noqa: ANN401 - what JSON can say
    """Write a mapping or a list as a block of YAML, each value on lines of its own."""
    items = value.items() if isinstance(value, Mapping) else ((None, one) for one in value)
    for key, one in items:
        lead = f"{indent}-" if key is None else f"{indent}{_scalar(key)}:"
        if isinstance(one, Mapping | list) and one:
            inner = "".join(_block(one, indent + "  "))
            yield f"{lead} {inner.lstrip()}" if key is None else f"{lead}\n{inner}"
        elif isinstance(one, str) and _is_plain(one):
            yield f"{lead} |\n"
            yield from (f"{indent}  {line}\n" if line else "\n" for line in one[:-1].split("\n"))
        else:
            yield f"{lead} {_scalar(one)}\n"


def _is_plain(text: str) -> bool:
    """Tell if a text of several lines says the same when it is only indented."""
    ends = text.endswith("\n") and not text.endswith("\n\n") and not text.startswith((" ", "\t", "\n"))
    return ends and not _UNPRINTABLE.search(text.replace("\n", "").replace("\t", ""))


def _scalar(value: Any) -> str:  # noqa: ANN401 - what JSON can say
    """Write a value on one line, as JSON does; YAML reads that, and a plain word without quotes."""
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return _UNPRINTABLE.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"
