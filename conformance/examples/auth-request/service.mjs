// The verdict over HTTP: GET /auth, the question in x-asked-* (or x-hex-*, in hex, where it is not plain text), the answer
// in x-verdict, x-status and x-iam-*, its texts in hex. It decides as ../node does; only the way to it is another one.

import { createServer } from "node:http";
import { network } from "../node/paths.mjs";
import { judged, start } from "../node/gate.mjs";
import { refuse } from "../node/jwt.mjs";

const TEXTS = ["reason", "error", "role", "principal", "session", "issuer", "rule", "backend"];

async function answer(request, response) {
  const of = (name) => {
    const hex = request.headers[`x-hex-${name}`];
    return request.headers[`x-asked-${name}`] ?? (hex === undefined ? null : Buffer.from(hex, "hex").toString("latin1"));
  };
  const src = network(of("src") ?? "");
  const variables = await judged(() => ({
    authorization: of("authorization"), count: BigInt(of("authorization-count") ?? 1), role: of("role"),
    method: of("method") ?? "", host: of("host"), path: of("path") ?? "", src: src?.bytes ?? refuse(true, "internal_error"),
  }));
  response.setHeader("x-verdict", variables.allow ? "allow" : "refuse").setHeader("x-status", variables.status);
  if (variables.expires !== undefined) response.setHeader("x-iam-expires", variables.expires);
  for (const name of TEXTS)
    if (variables[name] !== undefined) response.setHeader(`x-iam-${name}`, Buffer.from(variables[name], "utf8").toString("hex"));
  response.end();
}

// A question has a credential of up to 8 kB and a path of 4 kB, each twice as long in hex.
const server = createServer({ maxHeaderSize: 131072, keepAliveTimeout: 60000 }, answer);
start(
  (where, ready) => server.listen(where, () => ready(server.address())),
  () => server.close(),
);
