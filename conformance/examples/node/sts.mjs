// Pre-signed GetCallerIdentity (SPEC.md 5.13, 5.14, 6.8, 6.9). Only STS can tell a good one from a forged one, so calls
// are few: an answer is believed for `recheck`, and a flood of forgeries has a bounded share of them.

import { createHash } from "node:crypto";
import { get } from "./fetch.mjs";
import { base64url, isTag, refuse, Refusal } from "./jwt.mjs";
import { roleArn } from "./paths.mjs";

export const PREFIX = "iam-sts-v1.";
const LIFETIME = 15 * 60;
const FIXED = { Action: "GetCallerIdentity", Version: "2011-06-15", "X-Amz-Algorithm": "AWS4-HMAC-SHA256" };
const FORMS = {
  "X-Amz-Credential": /^[A-Z0-9]{16,128}\/\d{8}\/[a-z0-9-]{1,32}\/sts\/aws4_request$/,
  "X-Amz-Date": /^\d{8}T\d{6}Z$/,
  "X-Amz-Expires": /^(?:[1-9]?\d|[1-8]\d\d|900)$/,
  "X-Amz-SignedHeaders": /^[a-z0-9;-]+$/,
  "X-Amz-Signature": /^[0-9a-f]{64}$/,
};
const TOKEN = "X-Amz-Security-Token";
const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

// The parts of a credential; nothing of it reaches the network but what is checked here.
export function parse(credential) {
  refuse(credential.length > Math.ceil((4096 * 4) / 3), "token_too_large");
  const url = base64url(credential)?.toString("latin1") ?? "";
  refuse(url.length > 4096, "token_too_large");
  const [, host, query] = /^https:\/\/([!-.0-~]+)\/\?([!-"$-~]+)$/.exec(url) ?? [];
  refuse(host === undefined, "token_malformed");
  const given = new Map();
  for (const pair of query.split("&")) {
    const [, name, raw] = /^([A-Za-z0-9-]+)=([^=]*={0,2})$/.exec(pair) ?? [];
    refuse(name === undefined || given.has(name), "token_malformed");
    refuse(!(name in FIXED || name in FORMS || name === TOKEN), "token_malformed");
    let value;
    try {
      value = decodeURIComponent(raw);
    } catch {
      throw new Refusal("token_malformed");
    }
    given.set(name, value);
  }
  for (const [name, value] of Object.entries(FIXED)) refuse(given.get(name) !== value, "token_malformed");
  for (const [name, form] of Object.entries(FORMS)) refuse(!form.test(given.get(name) ?? ""), "token_malformed");
  refuse(given.has(TOKEN) && !/^[!-~]{1,4096}$/.test(given.get(TOKEN)), "token_malformed");
  const date = given.get("X-Amz-Date");
  const iso = date.replace(/^(....)(..)(..)T(..)(..)(..)Z$/, "$1-$2-$3T$4:$5:$6.000Z");
  const issued = Date.parse(iso) / 1000;
  refuse(Number.isNaN(issued) || new Date(issued * 1000).toISOString() !== iso, "token_malformed");
  refuse(given.get("X-Amz-Credential").split("/")[1] !== date.slice(0, 8), "token_malformed");
  return { host, given, issued };
}

// What STS said: exactly its own document, nothing that merely contains the right element.
function readAnswer({ status, type, body }) {
  const text = body.toString("utf8");
  if (status !== 200) {
    const code = /<Code>([A-Za-z]+)<\/Code>/.exec(text)?.[1] ?? "";
    const ours = status >= 500 || status === 429 || status < 400 || /Throttl|TooManyRequests|RequestLimit|Unavailable|Internal/.test(code);
    throw new Refusal(ours ? "sts_unavailable" : "sts_rejected");
  }
  const answer =
    /^\s*(?:<\?xml[^<>]*\?>)?\s*<GetCallerIdentityResponse xmlns="https:\/\/sts\.amazonaws\.com\/doc\/2011-06-15\/">\s*<GetCallerIdentityResult>((?:\s*<(?:Arn|UserId|Account)>[^<>&]*<\/(?:Arn|UserId|Account)>){3})\s*<\/GetCallerIdentityResult>\s*<ResponseMetadata>\s*<RequestId>[^<>&]*<\/RequestId>\s*<\/ResponseMetadata>\s*<\/GetCallerIdentityResponse>\s*$/.exec(text);
  refuse(!answer || !/^(?:text|application)\/xml\b/.test(type), "sts_unavailable");
  const found = Object.fromEntries([...answer[1].matchAll(/<(\w+)>([^<]*)<\/\1>/g)].map(([, name, value]) => [name, value]));
  refuse(Object.keys(found).length !== 3, "sts_unavailable");
  return found;
}

export class Sts {
  constructor(entry, clock) {
    Object.assign(this, { entry, clock, known: new Map(), calls: new Map(), replayed: new Map() });
    this.confirmed = new Set(); // access keys that STS has confirmed
    this.out = { known: 0, strangers: 0 };
    this.queues = { known: [], strangers: [] };
  }

  async identify({ host, given, issued }) {
    const now = this.clock();
    refuse(issued > now + 5, "token_not_yet_valid");
    refuse(now >= issued + LIFETIME, "token_expired");
    const headers = given.get("X-Amz-SignedHeaders").split(";").sort().join(";");
    refuse(headers !== ["host", this.entry.binding_header].sort().join(";"), "token_malformed");
    const signature = given.get("X-Amz-Signature");
    const id = createHash("sha256").update(JSON.stringify([host, ...[...given].sort()])).digest("hex");
    if (this.entry.replay_cache) {
      for (const [seen, until] of this.replayed) if (until <= now) this.replayed.delete(seen);
      refuse(this.replayed.has(signature), "sts_rejected");
    }
    let answer = this.known.get(id);
    if (!answer || answer.until <= now) {
      this.known.delete(id);
      if (!this.calls.has(id)) this.calls.set(id, this.call(host, given).finally(() => this.calls.delete(id)));
      answer = { ...(await this.calls.get(id)), until: now + this.entry.recheck };
      if (this.known.size > 10000) this.known.delete(this.known.keys().next().value);
      this.known.set(id, answer);
    }
    if (this.entry.replay_cache) {
      refuse(this.replayed.has(signature), "sts_rejected");
      this.replayed.set(signature, issued + LIFETIME);
    }
    return this.identity(answer, issued);
  }

  identity({ Arn: arn, Account: account, UserId: user }, issued) {
    const [, partition, service, owner, rest] = /^arn:([a-z-]+):(iam|sts)::(\d{12}):([!-~]+)$/.exec(arn) ?? [];
    refuse(partition === undefined || owner !== account, "sts_unavailable");
    refuse(this.entry.accounts && !this.entry.accounts.includes(account), "claim_invalid");
    refuse(!(service === "sts" && rest.startsWith("assumed-role/")), "role_missing");
    const role = roleArn(arn);
    refuse(!role?.session || user.split(":")[1] !== role.session || !isTag(arn), "sts_unavailable");
    return { issuer: this.entry.name, principal: arn, session: role.session, roles: [role.arn], iat: issued, expires: issued + LIFETIME };
  }

  // Strangers and callers whose access key STS has confirmed have places of their own.
  async call(host, given) {
    const key = given.get("X-Amz-Credential").split("/")[0];
    const kind = this.confirmed.has(key) ? "known" : "strangers";
    const most = kind === "known" ? 14 : 12;
    if (this.out[kind] >= most) await this.turn(kind);
    else this.out[kind]++;
    try {
      const names = Object.keys({ ...FIXED, ...FORMS, [TOKEN]: 0 }).filter((name) => given.has(name));
      const url = new URL(this.entry.endpoint);
      url.search = names.map((name) => `${name}=${encode(given.get(name))}`).join("&");
      const answer = await get(url, {
        timeout: this.entry.timeout,
        most: 65536,
        headers: { host, [this.entry.binding_header]: this.entry.binding_value, accept: "application/xml" },
      }).catch(() => {
        throw new Refusal("sts_unavailable");
      });
      const found = readAnswer(answer);
      this.confirmed.add(key);
      if (this.confirmed.size > 10000) this.confirmed.delete(this.confirmed.values().next().value);
      return found;
    } finally {
      const next = this.queues[kind].pop(); // the newest: those who waited long have given up
      if (next) next();
      else this.out[kind]--;
    }
  }

  turn(kind) {
    return new Promise((resolve, reject) => {
      const queue = this.queues[kind];
      const mine = () => {
        clearTimeout(timer);
        resolve();
      };
      const leave = (waiter) => {
        const index = queue.indexOf(waiter);
        if (index >= 0) queue.splice(index, 1);
      };
      const timer = setTimeout(() => {
        leave(mine);
        reject(new Refusal("sts_unavailable"));
      }, 2000);
      queue.push(mine);
    });
  }
}
