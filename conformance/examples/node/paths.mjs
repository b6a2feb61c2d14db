// Paths (SPEC.md section 7), hosts (6.17) and networks (6.18): what rules are compared with.

// Letters that NFKC turns into `.`, `..`, or a text with a separator (7.2).
const LOOK_ALIKES =
  /[\u037E\u2024\u2025\u2100\u2101\u2105\u2106\uFE14\uFE30\uFE52\uFE54\uFE68\uFE6A\uFF05\uFF0E\uFF0F\uFF1B\uFF3C]/u;
const EDGE_BLANK = /^[\p{White_Space}\uFEFF]|[\p{White_Space}\uFEFF]$/u;
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

// The canonical segments of a path, or null where servers could read it in two ways.
export function segments(path) {
  // The characters that a path may have as themselves (RFC 3986), `;` aside, and whole escapes.
  if (!/^\/(?:[A-Za-z0-9\-._~!$&'()*+,=:@/"<>[\]^`{|}]|%[0-9A-Fa-f]{2})*$/.test(path)) return null;
  const canonical = path.replace(/%(..)/g, (escape, hex) => {
    const letter = String.fromCharCode(parseInt(hex, 16));
    return /[A-Za-z0-9\-._~]/.test(letter) ? letter : escape.toUpperCase();
  });
  if (/%(?:[01].|2F|5C|3B|7F|25[0-9A-Fa-f]{2})/.test(canonical)) return null;
  const parts = canonical.slice(1).split("/");
  if (parts.at(-1) === "") parts.pop(); // one trailing slash
  for (const part of parts) {
    if (part === "" || part === "." || part === "..") return null;
    const bytes = Buffer.from(part.replace(/%(..)/g, (_, hex) => String.fromCharCode(parseInt(hex, 16))), "latin1");
    try {
      const text = utf8.decode(bytes);
      if (EDGE_BLANK.test(text) || LOOK_ALIKES.test(text)) return null;
    } catch {
      return null; // no UTF-8
    }
  }
  return parts;
}

// A host without case, port and trailing dot; null where it is none.
export function hostName(text) {
  const match = /^(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::\d*)?$/.exec((text ?? "").toLowerCase());
  return match && match[1];
}

const below = (host, pattern) => host.endsWith(pattern.slice(1)) && host.length > pattern.length - 1;
export const hostMatches = (pattern, host) => (pattern.startsWith("*.") ? below(host, pattern) : host === pattern);
export function hostsMeet(one, other) {
  if (!one.startsWith("*.")) return hostMatches(other, one);
  if (!other.startsWith("*.")) return hostMatches(one, other);
  return one.endsWith(other.slice(1)) || other.endsWith(one.slice(1));
}

// An address as bytes; one of IPv4 written as IPv6 is one of IPv4.
export function address(bytes) {
  const mapped = bytes.length === 16 && bytes.subarray(0, 12).equals(Buffer.from("00000000000000000000ffff", "hex"));
  return mapped ? bytes.subarray(12) : bytes;
}

// "10.0.0.0/8" to { bytes, bits }, or null.
export function network(text) {
  const [, host, prefix] = /^([0-9a-fA-F.:]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  if (host === undefined) return null;
  const bytes = host.includes(":") ? ipv6(host) : ipv4(host);
  const bits = prefix === undefined ? bytes?.length * 8 : Number(prefix);
  if (!bytes || bits > bytes.length * 8) return null;
  const short = address(bytes);
  return short.length < bytes.length && bits >= 96 ? { bytes: short, bits: bits - 96 } : { bytes, bits };
}
function ipv4(text) {
  const parts = text.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^\d{1,3}$/.test(part) && part < 256)) return null;
  return Buffer.from(parts.map(Number));
}
function ipv6(text) {
  const tail = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);
  if (tail) {
    const last = ipv4(tail[2]);
    if (!last) return null;
    text = `${tail[1]}${last.readUInt16BE(0).toString(16)}:${last.readUInt16BE(2).toString(16)}`;
  }
  const halves = text.split("::").map((half) => (half ? half.split(":") : []));
  const missing = 8 - halves.flat().length;
  if (halves.length > 2 || (halves.length === 1 ? missing !== 0 : missing < 1)) return null;
  const groups = halves.length === 1 ? halves[0] : [...halves[0], ...Array(missing).fill("0"), ...halves[1]];
  if (!groups.every((group) => /^[0-9a-fA-F]{1,4}$/.test(group))) return null;
  return Buffer.from(groups.map((group) => group.padStart(4, "0")).join(""), "hex");
}

const sameBits = (one, other, bits) => {
  const whole = bits >> 3, rest = bits & 7;
  if (!one.subarray(0, whole).equals(other.subarray(0, whole))) return false;
  return rest === 0 || one[whole] >> (8 - rest) === other[whole] >> (8 - rest);
};
export const inNetwork = (net, bytes) => net.bytes.length === bytes.length && sameBits(net.bytes, bytes, net.bits);
export const networksMeet = (one, other) =>
  one.bytes.length === other.bytes.length && sameBits(one.bytes, other.bytes, Math.min(one.bits, other.bits));

// Role ARNs (6.10). The canonical one, or null.
const PARTITION = "(aws|aws-cn|aws-us-gov|aws-iso|aws-iso-b|aws-iso-e|aws-iso-f|aws-eusc)";
const NAME = "([A-Za-z0-9_+=,.@-]{1,64})";
const ROLE = new RegExp(`^arn:${PARTITION}:iam::(\\d{12}):role/(?:[!-9;-~]+/)?${NAME}$`);
const ASSUMED = new RegExp(`^arn:${PARTITION}:sts::(\\d{12}):assumed-role/${NAME}/([A-Za-z0-9_+=,.@-]{2,64})$`);
export function roleArn(text) {
  const match = typeof text === "string" && (ROLE.exec(text) ?? ASSUMED.exec(text));
  if (!match) return null;
  return { arn: `arn:${match[1]}:iam::${match[2]}:role/${match[3]}`, account: match[2], session: match[4] };
}
