// The policy (SPEC.md section 6): how it is read, what is refused when it loads, and how it decides.

import { hostMatches, hostName, hostsMeet, inNetwork, network, networksMeet, roleArn, segments } from "./paths.mjs";

export class PolicyError extends Error {}

// Kinds of values. `!` is required; `=x` the default. [[tables]] and [table] name the table below.
const TABLES = {
  "": {
    version: "integer!", multi_role: "deny|union=deny", agent: "table", audit: "table", metrics: "table", live: "table",
    identity_header: "table", keys: "table", limits: "table", issuers: "tables", sts: "tables", roles: "tables",
    groups: "tables", backends: "tables", grants: "tables", denies: "tables", scopes: "tables", $schema: "any",
  },
  issuers: {
    name: "text!", issuer: "text!", jwks_uri: "text", insecure_http: "boolean", audiences: "texts", client_ids: "texts",
    algorithms: "texts!", types: "texts", profile: "generic|rfc9068|cognito|aws=generic", roles_claim: "claim",
    preferred_role_claim: "claim", scope_claim: "claim", scope_required: "boolean", session_claim: "claim",
    principal_claim: "claim", accounts: "texts", max_lifetime: "duration=3600s", leeway: "duration=0s",
  },
  keys: { refresh: "duration=300s", cooldown: "duration=10s", max_stale: "duration=3600s", timeout: "duration=5s" },
  sts: {
    name: "text!", endpoint: "text!", hosts: "texts!", binding_header: "text", binding_value: "text!", accounts: "texts",
    insecure_http: "boolean", timeout: "duration=10s", recheck: "duration=60s", replay_cache: "boolean",
  },
  limits: { max_lifetime: "duration", max_token_bytes: "integer" },
  roles: { name: "text!", arn: "text", arns: "texts", max_lifetime: "duration" },
  groups: { name: "text!", roles: "texts!" },
  backends: { name: "text!", servers: "texts", tls: "table", streams: "boolean" },
  tls: { ca: "text!", certificate: "text", name: "text" },
  grants: {
    methods: "texts!", path: "text!", match: "prefix|exact=prefix", hosts: "texts", sources: "texts", id: "text!",
    roles: "texts!", backend: "text!", shadow: "boolean",
  },
  denies: {
    methods: "texts", path: "text!", match: "prefix|exact=prefix", hosts: "texts", sources: "texts", id: "text!",
    roles: "texts!", shadow: "boolean",
  },
  scopes: { name: "text!", methods: "texts", path: "text!", match: "prefix|exact=prefix", hosts: "texts" },
  agent: {
    listen: "text", workers: "integer", max_frame_size: "integer", max_connections: "integer",
    handshake_timeout: "duration=5s", drain_timeout: "duration=10s", state_dir: "text", control_socket: "text",
    decision_timeout: "duration", shadow_policy: "text",
  },
  live: { master_socket: "text", revocations: "text", gate: "text" },
  audit: { path: "text", on_error: "deny|allow=deny", sync: "duration", keep: "text", required: "boolean" },
  metrics: { listen: "text" },
  identity_header: { issuer: "text!", lifetime: "duration", rotate: "duration" },
};
const UNITS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400 };
export const ALGORITHMS = /^(?:[RPE]S(?:256|384|512)|EdDSA|Ed25519)$/;
const METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

function seconds(text) {
  const match = typeof text === "string" && /^([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)$/.exec(text);
  return match ? Number(match[1]) * UNITS[match[2]] : null;
}
const isTexts = (value) => Array.isArray(value) && value.every((item) => typeof item === "string");
const isTable = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

// Checks a table by its description and fills in defaults. `fault(key, message)` notes what is wrong.
function read(table, description, where, fault) {
  const out = {};
  for (const key of Object.keys(table))
    if (!Object.hasOwn(TABLES[description], key) && !(description === "" && key.startsWith("x-")))
      fault(where + key, "is no key that there is; remove it or mend its spelling");
  for (const [key, spelled] of Object.entries(TABLES[description])) {
    const [, kind, required, preset] = /^([^!=]+)(!?)(?:=(.*))?$/.exec(spelled);
    const at = where + key, value = Object.hasOwn(table, key) ? table[key] : preset;
    if (value === undefined) {
      if (required) fault(at, "is required");
      continue;
    }
    const good = {
      any: () => true,
      text: () => typeof value === "string",
      texts: () => isTexts(value),
      claim: () => (typeof value === "string" || isTexts(value)) && value.length > 0,
      boolean: () => typeof value === "boolean",
      integer: () => Number.isSafeInteger(value),
      duration: () => seconds(value) !== null,
      table: () => isTable(value),
      tables: () => Array.isArray(value) && value.every(isTable),
    }[kind] ?? (() => kind.split("|").includes(value));
    if (!good()) fault(at, `is no ${kind}`);
    else if (kind === "duration") out[key] = seconds(value);
    else if (kind === "table") out[key] = read(value, key, `${at}.`, fault);
    else if (kind === "tables") out[key] = value.map((item, index) => read(item, key, `${at}[${index}].`, fault));
    else out[key] = value;
  }
  return out;
}

const unsafeUrl = (text, insecure) => {
  const url = URL.canParse(text) ? new URL(text) : null;
  return !url || url.username || url.hash || !(url.protocol === "https:" || (insecure && url.protocol === "http:"));
};

// Reads a world file's document; throws one PolicyError that names all faults.
export function load(document) {
  const faults = [];
  const fault = (key, message) => faults.push(`${key}: ${message}`);
  if (!isTable(document)) throw new PolicyError("the policy is no table");
  const policy = read(document, "", "", fault);
  const stop = () => {
    if (faults.length) throw new PolicyError(faults.join("; "));
  };
  stop(); // what follows relies on types
  if (policy.version !== 1) fault("version", "must be 1");
  for (const name of ["issuers", "sts", "roles", "groups", "backends", "grants", "denies", "scopes"]) policy[name] ??= [];
  for (const name of ["keys", "limits", "agent"]) policy[name] ??= read({}, name, "", fault);
  const { limits, agent } = policy;
  limits.max_token_bytes ??= 8192;
  if (limits.max_token_bytes < 256 || limits.max_token_bytes > 65536) fault("limits.max_token_bytes", "256 to 65536");
  agent.max_connections ??= 4096;
  agent.max_frame_size ??= 16380;
  if (agent.max_connections < 1) fault("agent.max_connections", "at least 1");
  if (agent.max_frame_size < 256 || agent.max_frame_size > 1 << 20) fault("agent.max_frame_size", "256 to 1048576");

  const once = (entries, table, key, seen = new Set()) => {
    entries.forEach((entry, index) => {
      if (seen.has(entry[key])) fault(`${table}[${index}].${key}`, `"${entry[key]}" is used twice`);
      seen.add(entry[key]);
    });
    return seen;
  };
  once(policy.sts, "sts", "name", once(policy.issuers, "issuers", "name"));
  once(policy.issuers, "issuers", "issuer");
  const backends = once(policy.backends, "backends", "name");
  const roleNames = once(policy.roles, "roles", "name");
  once(policy.groups, "groups", "name", new Set(roleNames));
  once(policy.denies, "denies", "id", once(policy.grants, "grants", "id"));

  policy.issuers.forEach((issuer, index) => readIssuer(issuer, `issuers[${index}].`, limits, fault));
  policy.sts.forEach((sts, index) => {
    sts.binding_header = (sts.binding_header ?? "x-iam-edge").toLowerCase();
    if (unsafeUrl(sts.endpoint, sts.insecure_http)) fault(`sts[${index}].endpoint`, "must be an https URL");
    if (sts.hosts.length === 0) fault(`sts[${index}].hosts`, "names no host");
  });

  policy.byArn = new Map(); // canonical ARN: { name, max_lifetime }
  policy.byName = new Map(); // role name: its ARNs
  policy.roles.forEach((role, index) => {
    const arns = role.arns ?? (role.arn === undefined ? [] : [role.arn]);
    if (arns.length === 0) fault(`roles[${index}].arn`, "one of arn and arns is needed");
    if (role.arn !== undefined && role.arns !== undefined) fault(`roles[${index}].arn`, "give arn or arns, not both");
    for (const arn of arns) {
      if (roleArn(arn)?.arn !== arn) fault(`roles[${index}].arn`, `"${arn}" is no canonical role ARN (no path, no session)`);
      if (policy.byArn.has(arn)) fault(`roles[${index}].arn`, `"${arn}" is there twice`);
      policy.byArn.set(arn, role);
    }
    policy.byName.set(role.name, arns);
  });
  const groups = new Map();
  policy.groups.forEach((group, index) => {
    for (const name of group.roles) if (!roleNames.has(name)) fault(`groups[${index}].roles`, `no role "${name}"`);
    groups.set(group.name, group.roles);
  });
  for (const table of ["grants", "denies", "scopes"])
    policy[table].forEach((rule, index) => {
      const where = `${table}[${index}].`;
      readRule(rule, where, fault);
      if (table === "scopes") return;
      if (table === "grants" && !backends.has(rule.backend)) fault(`${where}backend`, `no backend "${rule.backend}"`);
      rule.every = table === "denies" && rule.roles.includes("*");
      rule.names = new Set(rule.roles.filter((name) => name !== "*" || !rule.every).flatMap((name) => groups.get(name) ?? name));
      for (const name of rule.names) if (!roleNames.has(name)) fault(`${where}roles`, `no role or group "${name}"`);
    });
  stop();
  conflicts(policy, fault);
  stop();
  return policy;
}

function readIssuer(issuer, where, limits, fault) {
  issuer.audiences ??= [];
  issuer.client_ids ??= [];
  if (!issuer.audiences.length && !issuer.client_ids.length) fault(`${where}audiences`, "needs audiences or client_ids");
  if (!issuer.algorithms.length) fault(`${where}algorithms`, "names none");
  for (const name of issuer.algorithms)
    if (!ALGORITHMS.test(name)) fault(`${where}algorithms`, `"${name}" is not accepted: use RS256, ES256 or the like`);
  if (issuer.leeway > 60) fault(`${where}leeway`, "at most 60s");
  issuer.max_lifetime = Math.min(issuer.max_lifetime, limits.max_lifetime ?? Infinity);
  issuer.types = (issuer.types ?? ["JWT", "at+jwt"]).map(mediaType);
  if (issuer.jwks_uri === undefined && unsafeUrl(issuer.issuer, issuer.insecure_http))
    fault(`${where}issuer`, "must be an https URL, or give jwks_uri");
  if (issuer.jwks_uri !== undefined && unsafeUrl(issuer.jwks_uri, issuer.insecure_http))
    fault(`${where}jwks_uri`, "must be an https URL");
  for (const key of ["roles_claim", "preferred_role_claim", "scope_claim"])
    if ([issuer[key] ?? []].flat().some((part) => part.includes("request_tags")))
      fault(where + key, "request tags are the caller's own words and prove nothing");
  const cognito = issuer.profile === "cognito" && issuer.roles_claim === undefined;
  issuer.roles_claim ??= cognito ? "cognito:roles" : "roles";
  if (cognito) issuer.preferred_role_claim ??= "cognito:preferred_role";
  issuer.principal_claim ??= "sub";
  issuer.session_claim ??= "jti";
  issuer.scope_required ??= true;
}
export const mediaType = (text) => text.toLowerCase().replace(/^application\//, "");

function readRule(rule, where, fault) {
  rule.methods ??= ["*"];
  for (const method of rule.methods)
    if (!METHODS.includes(method) && METHODS.includes(method.toUpperCase()))
      fault(`${where}methods`, `"${method}": methods are compared by case, write ${method.toUpperCase()}`);
  rule.segments = segments(rule.path);
  if (rule.segments === null) fault(`${where}path`, "is ambiguous (SPEC.md 7.2)");
  else if (rule.segments.includes("*")) fault(`${where}path`, "has no wildcards; a prefix opens what is below");
  rule.hosts = (rule.hosts ?? []).map((text) => {
    const name = hostName(text.startsWith("*.") ? text.slice(2) : text);
    if (name === null) fault(`${where}hosts`, `"${text}" is no host`);
    return text.startsWith("*.") ? `*.${name}` : name;
  });
  rule.sources = (rule.sources ?? []).map((text) => {
    const net = network(text);
    if (net === null) fault(`${where}sources`, `"${text}" is no network`);
    return net;
  });
}

// Two grants conflict where one request could match both, neither wins, and they lead apart (6.24).
function conflicts(policy, fault) {
  const meet = (one, other, test) => !one.length || !other.length || one.some((a) => other.some((b) => test(a, b)));
  const met = new Map();
  for (const grant of policy.grants) {
    if (grant.shadow) continue;
    const place = `${grant.match} ${grant.segments.join("/")}`;
    for (const other of met.get(place) ?? []) {
      if (other.backend === grant.backend) continue;
      const roles = policy.multi_role === "union" || [...grant.names].some((name) => other.names.has(name));
      const methods = grant.methods.some((a) => other.methods.some((b) => a === b || a === "*" || b === "*"));
      if (roles && methods && meet(grant.hosts, other.hosts, hostsMeet) && meet(grant.sources, other.sources, networksMeet))
        fault("grants", `"${other.id}" and "${grant.id}" match the same requests and name different backends`);
    }
    met.set(place, [...(met.get(place) ?? []), grant]);
  }
}

// Whether a rule's conditions hold. `unknown` is what one that cannot be evaluated counts as.
function matches(rule, request, unknown) {
  if (!rule.methods.includes("*") && !rule.methods.includes(request.method)) return false;
  const { segments: path } = rule;
  if (rule.match === "exact" ? path.length !== request.path.length : path.length > request.path.length) return false;
  if (!path.every((segment, index) => segment === request.path[index])) return false;
  if (rule.hosts.length && !(request.host === null ? unknown : rule.hosts.some((host) => hostMatches(host, request.host)))) return false;
  if (!rule.sources?.length) return true;
  return rule.sources.some((net) => inNetwork(net, request.src));
}

const smaller = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const moreSpecific = (one, other) =>
  (other.match === "exact") - (one.match === "exact") || other.segments.length - one.segments.length || smaller(one.id, other.id);

// The active roles (6.12), or a reason.
function activeRoles(policy, identity, requested) {
  const { roles, preferred } = identity;
  if (requested !== null) {
    const asked = (policy.byName.get(requested) ?? [requested]).filter((arn) => roles.includes(arn));
    return asked.length ? asked : "role_not_in_token";
  }
  if (preferred !== undefined && roles.includes(preferred)) return [preferred];
  return roles.length === 1 || policy.multi_role === "union" ? roles : "ambiguous_role";
}

// identity: { roles, preferred, iat, expires, scopes }; scopes undefined: not limited.
// Returns { reason, rule } or { grant, role, expires }. `now` in seconds.
export function decide(policy, identity, request, now) {
  const active = activeRoles(policy, identity, request.role);
  if (typeof active === "string") return { reason: active };
  const nameOf = (arn) => policy.byArn.get(arn)?.name;
  const names = new Set(identity.roles.map(nameOf));
  const deny = policy.denies
    .filter((rule) => !rule.shadow && (rule.every || [...rule.names].some((name) => names.has(name))) && matches(rule, request, true))
    .sort((a, b) => smaller(a.id, b.id))[0];
  if (deny) return { reason: "denied_by_rule", rule: deny.id };
  // A role with a lifetime of its own grants nothing to a credential that does not say when it began (6.23).
  const granting = active.filter((arn) => identity.iat !== undefined || policy.byArn.get(arn)?.max_lifetime === undefined);
  const named = (rule) => granting.filter((arn) => rule.names.has(nameOf(arn))).sort(smaller);
  const grant = policy.grants
    .filter((rule) => !rule.shadow && named(rule).length && matches(rule, request, false))
    .sort(moreSpecific)[0];
  if (!grant) return { reason: "no_grant" };
  if (identity.scopes && !policy.scopes.some((scope) => identity.scopes.includes(scope.name) && matches(scope, request, false)))
    return { reason: "scope_insufficient" };
  const ends = named(grant).map((arn) => identity.iat + (policy.byArn.get(arn).max_lifetime ?? Infinity));
  const expires = Math.floor(Math.min(identity.expires, ...ends.filter((end) => !Number.isNaN(end))));
  return now >= expires ? { reason: "token_expired" } : { grant, role: named(grant)[0], expires };
}
