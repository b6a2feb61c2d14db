// From a bearer token to an identity, in the order of SPEC.md 4.2. A refusal is thrown as a Refusal.

import { constants, verify } from "node:crypto";
import { mediaType } from "./policy.mjs";
import { roleArn } from "./paths.mjs";

export class Refusal extends Error {
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}
export const refuse = (condition, reason) => {
  if (condition) throw new Refusal(reason);
};

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isTime = (value) => typeof value === "number" && Number.isFinite(value);
export const base64url = (text) => (/^[A-Za-z0-9_-]*$/.test(text) && text.length % 4 !== 1 ? Buffer.from(text, "base64url") : null);
// What becomes a tag (5.11).
export const isTag = (value) =>
  typeof value === "string" && [...value].length <= 512 && /^(?! )(?:(?![\p{C}\p{Z}]).| )+(?<! )$/u.test(value);

function object(part) {
  try {
    const value = JSON.parse(utf8.decode(base64url(part)));
    if (isObject(value)) return value;
  } catch {
    // told below
  }
  throw new Refusal("token_malformed");
}

// A claim by name or path, own members only.
function claim(payload, path) {
  if (path === undefined) return undefined;
  return [path].flat().reduce((value, key) => (isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined), payload);
}

function signed(alg, key, data, signature) {
  if (alg === "EdDSA" || alg === "Ed25519") return verify(null, data, key, signature);
  const hash = `sha${alg.slice(2)}`;
  // OpenSSL takes an RSA signature without its leading zeros; RFC 8017 8.1.2 and 8.2.2 do not.
  if (key.asymmetricKeyType === "rsa" && signature.length !== Math.ceil(key.asymmetricKeyDetails.modulusLength / 8)) return false;
  if (alg.startsWith("ES")) return verify(hash, data, { key, dsaEncoding: "ieee-p1363" }, signature);
  if (alg.startsWith("RS")) return verify(hash, data, { key, padding: constants.RSA_PKCS1_PADDING }, signature);
  return verify(hash, data, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: constants.RSA_PSS_SALTLEN_DIGEST }, signature);
}

// `world.issuers` maps `iss` to { issuer, keys }. Returns { issuer, principal, session, roles, preferred, iat, expires, scopes }.
export async function identify(token, world, clock) {
  const parts = token.split(".");
  refuse(parts.length !== 3, "token_malformed");
  const header = object(parts[0]), payload = object(parts[1]);
  const signature = base64url(parts[2]);
  const kid = Object.hasOwn(header, "kid") ? header.kid : undefined;
  refuse(signature === null || typeof header.alg !== "string", "token_malformed");
  refuse(kid !== undefined && typeof kid !== "string", "token_malformed");
  // No extension is understood here, so none may be critical; a payload that is not encoded is another data.
  refuse(Object.hasOwn(header, "crit") || header.b64 === false, "token_malformed");
  // A token in a token (RFC 7519 7.2, step 8): what is inside is not a JWT that is unwrapped here.
  refuse(Object.hasOwn(header, "cty") && mediaType(String(header.cty)) === "jwt", "token_malformed");
  refuse(header.typ !== undefined && typeof header.typ !== "string", "token_malformed");

  const { issuer, keys } = world.issuers.get(claim(payload, "iss")) ?? {};
  refuse(!issuer, "issuer_untrusted");
  refuse(!issuer.algorithms.includes(header.alg), "algorithm_not_allowed");
  const type = mediaType(header.typ ?? "JWT");
  refuse(!issuer.types.includes(type), "type_not_allowed");
  refuse(issuer.profile === "rfc9068" && type !== "at+jwt", "type_not_allowed");
  refuse(Object.hasOwn(payload, "events"), "type_not_allowed"); // a logout token or another event (5.23)

  const candidates = await keys.candidates(kid, header.alg);
  refuse(typeof candidates === "string", candidates);
  const data = Buffer.from(`${parts[0]}.${parts[1]}`, "latin1");
  refuse(!candidates.some(({ key }) => signed(header.alg, key, data, signature)), "signature_invalid");

  const { exp, nbf, iat } = payload;
  refuse(!isTime(exp) || [nbf, iat].some((time) => time !== undefined && !isTime(time)), "claim_invalid");
  const now = clock(), { leeway } = issuer;
  refuse(now >= exp + leeway, "token_expired");
  refuse(nbf > now + leeway || iat > now + leeway, "token_not_yet_valid");
  refuse(exp - (iat ?? now) > issuer.max_lifetime, "token_lifetime");
  audience(payload, issuer);
  refuse(Object.hasOwn(payload, "cnf"), "token_bound"); // bound to a key that is not asked for (5.21)

  const principal = claim(payload, issuer.principal_claim), session = claim(payload, issuer.session_claim);
  refuse(!isTag(principal) || (session !== undefined && !isTag(session)), "claim_invalid");
  if (issuer.profile === "rfc9068")
    refuse(["sub", "client_id", "jti"].some((name) => typeof payload[name] !== "string") || iat === undefined, "claim_invalid");
  const identity = { issuer: issuer.name, principal, session, iat, expires: exp + leeway };
  if (issuer.profile === "aws") Object.assign(identity, outbound(payload, issuer, now, identity.expires));
  else identity.roles = roles(claim(payload, issuer.roles_claim), issuer);
  const preferred = claim(payload, issuer.preferred_role_claim);
  refuse(preferred !== undefined && !roleArn(preferred), "role_malformed");
  identity.preferred = preferred && roleArn(preferred).arn;
  identity.scopes = scopes(payload, issuer);
  return identity;
}

function audience(payload, issuer) {
  const named = (list, value) => list.includes(value);
  if (issuer.profile === "cognito") {
    const { token_use: use } = payload;
    refuse(!(use === "access" && issuer.client_ids.length) && !(use === "id" && issuer.audiences.length), "type_not_allowed");
    if (use === "access") return refuse(!named(issuer.client_ids, payload.client_id), "audience_mismatch");
  }
  if (!Object.hasOwn(payload, "aud")) {
    const stands = issuer.profile === "generic" && named(issuer.client_ids, payload.client_id);
    return refuse(!stands, "audience_mismatch");
  }
  const given = [payload.aud].flat();
  refuse(given.some((name) => typeof name !== "string"), "claim_invalid");
  refuse(!given.some((name) => named(issuer.audiences, name)), "audience_mismatch");
}

function roles(value, issuer) {
  refuse(value === undefined || (Array.isArray(value) && value.length === 0), "role_missing");
  const found = [value].flat().map(roleArn);
  refuse(found.includes(null), "role_malformed");
  refuse(issuer.accounts && found.some(({ account }) => !issuer.accounts.includes(account)), "claim_invalid");
  return [...new Set(found.map(({ arn }) => arn))];
}

// AWS GetWebIdentityToken (5.12).
function outbound(payload, issuer, now, expires) {
  const nested = claim(payload, "https://sts.amazonaws.com/");
  refuse(!isObject(nested), "claim_invalid");
  const { aws_account: account, original_session_exp: end } = nested;
  const modes = [payload.subject_mode, nested.subject_mode];
  refuse(modes.some((mode) => typeof (mode ?? "") !== "string"), "claim_invalid");
  const origin = modes.includes("OriginIdentity");
  const arn = origin ? nested.principal_id : payload.sub;
  refuse(typeof account !== "string" || !issuer.accounts?.includes(account) || typeof arn !== "string", "claim_invalid");
  refuse(/^arn:[a-z-]+:(?:iam|sts)::\d{12}:(?:user\/.+|root|federated-user\/.+)$/.test(arn), "role_missing");
  const role = roleArn(arn);
  refuse(!role, "role_malformed");
  refuse(role.account !== account, "claim_invalid");
  if (end !== undefined) {
    const instant = typeof end === "string" && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z$/.test(end) ? Date.parse(end) / 1000 : end;
    refuse(!isTime(instant), "claim_invalid");
    refuse(now >= instant, "token_expired");
    expires = Math.min(expires, instant);
  }
  return { roles: [role.arn], expires };
}

function scopes(payload, issuer) {
  if (issuer.scope_claim === undefined) return undefined;
  const value = claim(payload, issuer.scope_claim);
  if (value === undefined) return issuer.scope_required ? [] : undefined;
  const list = typeof value === "string" ? value.split(" ").filter((name) => name !== "") : value;
  refuse(!Array.isArray(list) || list.some((name) => typeof name !== "string"), "claim_invalid");
  return list;
}
