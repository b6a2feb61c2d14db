// The gate without a protocol: what is in force, one verdict, and the life of the process (SPEC.md 3, 4, 8).

import { readFileSync } from "node:fs";
import { load, decide } from "./policy.mjs";
import { address, hostName, segments } from "./paths.mjs";
import { identify, Refusal, refuse } from "./jwt.mjs";
import { Keys } from "./keys.mjs";
import { parse, PREFIX, Sts } from "./sts.mjs";

const clock = () => Date.now() / 1000;
const STATUS = {
  400: "text_too_long host_ambiguous path_ambiguous multiple_credentials",
  403: "role_missing role_not_in_token ambiguous_role no_grant denied_by_rule scope_insufficient",
  503: "sts_unavailable keys_unavailable internal_error",
};
const ERRORS = { 400: "invalid_request", 401: "invalid_token", 403: "insufficient_scope", 503: undefined };
const statusOf = (reason) => Number(Object.keys(STATUS).find((status) => STATUS[status].split(" ").includes(reason)) ?? 401);

// All variables of section 3, in its order: what a refusal does not set, it unsets. `allow` is last.
const ANSWER = {
  status: undefined, reason: undefined, error: undefined, role: undefined, principal: undefined, session: undefined,
  issuer: undefined, rule: undefined, backend: undefined, expires: undefined, ticket: undefined, identity: undefined, allow: false,
};
export const refusal = (reason, rule) => {
  const status = statusOf(reason);
  return { ...ANSWER, status, reason, rule, error: reason === "no_credentials" ? undefined : ERRORS[status] };
};

// What is in force. A reload replaces it as a whole.
function build(document, old) {
  const policy = load(document);
  const kept = old ? [...old.issuers.values()] : [];
  const issuers = new Map();
  for (const issuer of policy.issuers) {
    const same = kept.find(({ keys }) => keys.takes(issuer));
    issuers.set(issuer.issuer, { issuer, keys: same ? same.keys.adopt(issuer, policy.keys) : new Keys(issuer, policy.keys) });
  }
  for (const { keys } of kept) if (![...issuers.values()].some((entry) => entry.keys === keys)) keys.stop();
  return { policy, issuers, sts: policy.sts.map((entry) => new Sts(entry, clock)) };
}
const worldFile = process.env.IAMROLES_POLICY;
const readWorld = () => JSON.parse(readFileSync(worldFile, "utf8"));

// asked: { authorization, count, role, method, host, path, src }, null where absent; `src` as bytes, `count` a BigInt.
async function verdict({ method, host, path, role, authorization, count, src }) {
  refuse(method.length > 32 || (host ?? "").length > 260 || path.length > 4096 || (role ?? "").length > 640, "text_too_long");
  const request = { method, host: hostName(host), path: segments(path), role, src: address(src) };
  refuse(request.path === null, "path_ambiguous");
  refuse(count !== null && count > 1n, "multiple_credentials");
  refuse(authorization === null, "no_credentials");
  refuse(count !== null && count < 1n, "internal_error");
  const [, credential] = /^bearer(?: +(.*?))?[ \t]*$/is.exec(authorization) ?? [];
  refuse(credential === undefined, "no_credentials");
  const world = inForce;
  refuse(credential.length > world.policy.limits.max_token_bytes, "token_too_large");
  const identity = credential.startsWith(PREFIX)
    ? await fromSts(credential.slice(PREFIX.length), world)
    : await identify(credential, world, clock);
  const decision = decide(world.policy, identity, request, clock());
  if (decision.reason) return refusal(decision.reason, decision.rule);
  const { principal, session, issuer } = identity;
  const { grant, role: granted, expires } = decision;
  return { ...ANSWER, status: 200, role: granted, principal, session, issuer, rule: grant.id, backend: grant.backend, expires, allow: true };
}

function fromSts(credential, world) {
  const parts = parse(credential);
  const sts = world.sts.find(({ entry }) => entry.hosts.includes(parts.host));
  refuse(!sts, "issuer_untrusted");
  return sts.identify(parts);
}

// The variables of section 3 for what `question()` gives; what it throws, and what goes wrong here, is a refusal.
export async function judged(question) {
  try {
    return await verdict(question());
  } catch (error) {
    if (error instanceof Refusal) return refusal(error.reason);
    process.stderr.write(`internal error: ${error.stack}\n`);
    return refusal("internal_error");
  }
}

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let inForce;
try {
  inForce = build(readWorld());
} catch (error) {
  process.stderr.write(`${worldFile}: ${error.message}\n`);
  process.exit(2);
}
process.on("SIGHUP", () => {
  try {
    inForce = build(readWorld(), inForce);
    say({ reloaded: true });
  } catch (error) {
    say({ reloaded: false, error: error.message });
  }
});

export const settings = () => inForce.policy.agent;

// Listens where the world says, by `listen(where, ready)`, and ends at SIGTERM, by `close()`.
export function start(listen, close) {
  const said = settings().listen ?? "127.0.0.1:9901";
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(said) ?? [];
  listen(said.startsWith("unix:") ? { path: said.slice(5) } : { host, port: Number(port) }, (bound) => {
    const at = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
    say({ ready: true, address: typeof bound === "string" ? `unix:${bound}` : `${at}:${bound.port}` });
  });
  process.on("SIGTERM", () => {
    close();
    for (const { keys } of inForce.issuers.values()) keys.stop();
    setTimeout(() => process.exit(0), settings().drain_timeout * 1000).unref();
  });
}
