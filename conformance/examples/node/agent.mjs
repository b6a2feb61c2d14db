// The agent: the gate over SPOP (SPEC.md sections 2 and 3).

import { createServer } from "node:net";
import { Connection } from "./spop.mjs";
import { judged, refusal, settings, start } from "./gate.mjs";
import { refuse } from "./jwt.mjs";

// The arguments of the one iam-check; what cannot be understood is refused (2.2, 2.3).
function question(messages, aborted) {
  const checks = messages.filter(([name]) => name === "iam-check");
  refuse(checks.length !== 1 || aborted, "internal_error");
  const found = new Map();
  for (const [name, argument] of checks[0][1]) {
    const other = found.get(name);
    refuse(other && (other.type !== argument.type || String(other.value) !== String(argument.value)), "internal_error");
    found.set(name, argument);
  }
  const of = (name, ...types) => {
    const { type, value } = found.get(name) ?? { type: "null", value: null };
    refuse(!types.includes(type), "internal_error");
    return value;
  };
  for (const name of ["authorization", "method", "path", "src"]) refuse(!found.has(name), "internal_error");
  return {
    authorization: of("authorization", "string", "null"),
    count: found.has("authorization-count") ? of("authorization-count", "int") : null,
    role: of("role", "string", "null"),
    method: of("method", "string"),
    host: of("host", "string", "null"),
    path: of("path", "string"),
    src: of("src", "ip"),
  };
}

const judge = (messages, aborted) =>
  messages.some(([name]) => name === "iam-check") ? judged(() => question(messages, aborted)) : {};

const connections = new Set();
const server = createServer({ allowHalfOpen: true }, (socket) => {
  const { max_connections: most, handshake_timeout: handshake, max_frame_size: maxFrameSize } = settings();
  if (connections.size >= most) return socket.destroy();
  const failed = () => refusal("internal_error");
  const connection = new Connection(socket, { judge, failed, maxFrameSize, handshakeTimeout: handshake * 1000 });
  connections.add(connection);
  socket.on("close", () => connections.delete(connection));
});
start(
  (where, ready) => server.listen(where, () => ready(server.address())),
  () => {
    server.close();
    for (const connection of connections) connection.finish();
  },
);
