// The key set of one issuer (SPEC.md 6.4 to 6.7).
//
// `set` is the last good one. It is renewed by a timer, on demand where there is none, and once for an unknown key id.
// All who need the same fetch share it, and nobody whose key is known waits for one.

import { createPublicKey } from "node:crypto";
import { get } from "./fetch.mjs";

const CURVES = { "P-256": "ES256", "P-384": "ES384", "P-521": "ES512" };

// JWK to { kid, fits(alg), key }, or null where it verifies nothing: symmetric, for encryption, weak, private, broken.
function readKey(jwk) {
  if (typeof jwk !== "object" || jwk === null || "d" in jwk || (jwk.use !== undefined && jwk.use !== "sig")) return null;
  if (jwk.key_ops !== undefined && !(Array.isArray(jwk.key_ops) && jwk.key_ops.includes("verify"))) return null;
  const fits = {
    RSA: (alg) => /^[RP]S/.test(alg),
    EC: (alg) => CURVES[jwk.crv] === alg,
    OKP: (alg) => jwk.crv === "Ed25519" && (alg === "EdDSA" || alg === "Ed25519"),
  }[jwk.kty];
  if (!fits) return null;
  try {
    const key = createPublicKey({ key: jwk, format: "jwk" });
    const bits = key.asymmetricKeyDetails.modulusLength ?? 2048;
    if (bits < 2048 || bits > 8192) return null; // RFC 7518 3.3, and work that is bounded
    const named = jwk.alg === "Ed25519" ? "EdDSA" : jwk.alg;
    const same = (alg) => named === undefined || named === (alg === "Ed25519" ? "EdDSA" : alg);
    return { kid: jwk.kid, key, fits: (alg) => fits(alg) && same(alg) };
  } catch {
    return null;
  }
}

export class Keys {
  constructor(issuer, settings) {
    Object.assign(this, { issuer, settings, set: null, fetchedAt: 0, failedAt: 0, vainAt: 0, fetching: null });
    this.renew();
  }

  // Whether another policy asks the same place: then what is known goes on serving after a reload.
  takes(issuer) {
    return ["issuer", "jwks_uri", "insecure_http"].every((key) => this.issuer[key] === issuer[key]);
  }

  adopt(issuer, settings) {
    Object.assign(this, { issuer, settings });
    this.plan();
    return this;
  }

  stop() {
    clearTimeout(this.timer);
    this.stopped = true;
  }

  plan(after = this.settings.refresh * 0.8) {
    clearTimeout(this.timer);
    if (!this.stopped) this.timer = setTimeout(() => this.renew(), after * 1000).unref();
  }

  renew() {
    this.fetching ??= this.fetch()
      .then((set) => {
        this.set = set;
        this.fetchedAt = performance.now();
        this.plan();
      })
      .catch((error) => {
        this.failedAt = performance.now();
        process.stderr.write(`keys of ${JSON.stringify(this.issuer.name)}: ${error.message}\n`);
        this.plan(Math.min(1, this.settings.refresh * 0.8));
      })
      .finally(() => {
        this.fetching = null;
      });
    return this.fetching;
  }

  async fetch() {
    const json = async (url) => {
      const answer = await get(url, { timeout: this.settings.timeout, most: 1 << 20, headers: { accept: "application/json" } });
      if (answer.status !== 200) throw new Error(`${url} answers ${answer.status}`);
      return JSON.parse(answer.body.toString("utf8"));
    };
    let from = this.issuer.jwks_uri;
    if (from === undefined) {
      const document = await json(`${this.issuer.issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
      // OpenID Connect Discovery 4.3: a document of another issuer is none of this one.
      if (document?.issuer !== this.issuer.issuer) throw new Error("the discovery document names another issuer");
      from = document.jwks_uri;
      const allowed = this.issuer.insecure_http ? ["https:", "http:"] : ["https:"];
      if (!URL.canParse(from) || !allowed.includes(new URL(from).protocol)) throw new Error("no usable jwks_uri");
    }
    const set = await json(from);
    if (!Array.isArray(set?.keys)) throw new Error("no key set");
    return set.keys.map(readKey).filter((key) => key !== null);
  }

  usable() {
    return this.set !== null && performance.now() - this.fetchedAt < this.settings.max_stale * 1000;
  }

  find(kid, alg) {
    const fitting = this.set.filter((key) => key.fits(alg) && (kid === undefined || key.kid === kid));
    return kid === undefined && fitting.length > 1 ? [] : fitting; // without an id, only where there is no choice
  }

  // The keys that a token may have been signed with: a list, or a reason.
  async candidates(kid, alg) {
    if (!this.usable()) {
      // After a failure others ask at most four times a second.
      if (this.fetching || performance.now() - this.failedAt > 250) await this.renew();
      if (!this.usable()) return "keys_unavailable";
    }
    let found = this.find(kid, alg);
    if (found.length === 0 && (this.vainAt === 0 || performance.now() - this.vainAt >= this.settings.cooldown * 1000)) {
      // A fetch that is under way may have left before the key was published; then one more is right.
      for (const late = this.fetching; found.length === 0; found = this.find(kid, alg)) {
        const mine = this.asking ?? (late && this.fetching === late ? late : (this.asking = this.renew().finally(() => (this.asking = null))));
        await mine;
        found = this.usable() ? this.find(kid, alg) : [];
        if (mine !== late) break;
      }
      if (!this.usable()) return "keys_unavailable";
      if (found.length === 0) this.vainAt = performance.now();
    }
    return found.length ? found : "key_unknown";
  }
}
