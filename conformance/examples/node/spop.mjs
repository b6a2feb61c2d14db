// SPOP 2.0 (SPOE.txt section 3): frames, and one connection of HAProxy. Knows nothing of tokens or policies.

const FIN = 1, ABORT = 2;
const UNSET = 0, HAPROXY_HELLO = 1, HAPROXY_DISCONNECT = 2, NOTIFY = 3;
const AGENT_HELLO = 101, AGENT_DISCONNECT = 102, ACK = 103;
// Before HELLO no size is agreed on. HAProxy offers its buffer size less 4 bytes, 16380 by default.
const MOST_BEFORE_HELLO = 65536;

// Ends a connection: a status code of SPOE.txt section 3.5, and words for whoever reads HAProxy's log.
class Fault extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}
const invalid = (message) => new Fault(4, message);

// Reads bytes from front to back; whatever is short or broken is a Fault.
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }
  get more() {
    return this.at < this.bytes.length;
  }
  byte() {
    if (!this.more) throw invalid("the frame ends in the middle of a value");
    return this.bytes[this.at++];
  }
  take(length) {
    if (length > this.bytes.length - this.at) throw invalid("a length goes past the end of the frame");
    return this.bytes.subarray(this.at, (this.at += length));
  }
  // SPOE.txt 3.1: up to 239 in one byte, else 4 bits and then 7 bits a byte. BigInt: ids have 64 bits.
  varint() {
    const first = this.byte();
    let value = BigInt(first);
    if (first < 240) return value;
    for (let shift = 4n; ; shift += 7n) {
      const next = this.byte();
      value += BigInt(next) << shift;
      if (value >= 1n << 64n) throw invalid("a varint has more than 64 bits");
      if (next < 128) return value;
      if (shift > 60n) throw invalid("a varint has more than ten bytes");
    }
  }
  // Strings are bytes; latin1 keeps each as one character, so that lengths and checks count bytes.
  string() {
    return this.take(Number(this.varint())).toString("latin1");
  }
  typed() {
    const first = this.byte();
    const type = first & 15;
    switch (type) {
      case 0: return { type: "null", value: null };
      case 1: return { type: "bool", value: (first & 16) !== 0 };
      case 2: case 3: case 4: case 5: return { type: "int", value: BigInt.asIntN(64, this.varint()) };
      case 6: return { type: "ip", value: Buffer.from(this.take(4)) };
      case 7: return { type: "ip", value: Buffer.from(this.take(16)) };
      case 8: return { type: "string", value: this.string() };
      case 9: return { type: "binary", value: this.string() };
      default: throw invalid(`unknown data type ${type}`);
    }
  }
  pairs(count) {
    const pairs = [];
    while (count === undefined ? this.more : count-- > 0) pairs.push([this.string(), this.typed()]);
    return pairs;
  }
}

const varint = (number) => {
  let value = BigInt(number);
  if (value < 240n) return Buffer.from([Number(value)]);
  const out = [Number(value & 15n) | 240];
  for (value = (value - 240n) >> 4n; value >= 128n; value = (value - 128n) >> 7n) out.push(Number(value & 127n) | 128);
  return Buffer.from([...out, Number(value)]);
};
const string = (text, encoding = "utf8") => {
  const bytes = Buffer.from(text, encoding);
  return Buffer.concat([varint(bytes.length), bytes]);
};
const typed = (value) => {
  if (typeof value === "boolean") return Buffer.from([value ? 0x11 : 0x01]);
  if (typeof value === "number") return Buffer.concat([Buffer.from([4]), varint(value)]);
  return Buffer.concat([Buffer.from([8]), string(value)]);
};
const frame = (type, stream, id, payload) => {
  const body = Buffer.concat([Buffer.from([type, 0, 0, 0, FIN]), varint(stream), varint(id), payload]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
};
const items = (object) => Buffer.concat(Object.entries(object).flatMap(([key, value]) => [string(key), typed(value)]));

// Actions in the order given: undefined unsets. Scope 2 is `txn`.
const actions = (variables) =>
  Buffer.concat(
    Object.entries(variables).map(([name, value]) =>
      value === undefined
        ? Buffer.concat([Buffer.from([2, 2, 2]), string(name)])
        : Buffer.concat([Buffer.from([1, 3, 2]), string(name), typed(value)]),
    ),
  );

function hello(payload, most) {
  const offer = new Map(new Reader(payload).pairs());
  const versions = offer.get("supported-versions"), size = offer.get("max-frame-size"), able = offer.get("capabilities");
  if (versions?.type !== "string") throw new Fault(5, "HELLO without supported-versions");
  if (size?.type !== "int") throw new Fault(6, "HELLO without max-frame-size");
  if (able?.type !== "string") throw new Fault(7, "HELLO without capabilities");
  if (!versions.value.split(",").some((version) => /^2\.\d+$/.test(version.trim())))
    throw new Fault(8, "no version 2 among the supported ones");
  if (size.value < 256n) throw new Fault(9, "max-frame-size is below 256");
  const pipelining = able.value.split(",").some((name) => name.trim() === "pipelining");
  return {
    size: size.value < BigInt(most) ? Number(size.value) : most,
    capabilities: pipelining ? "pipelining" : "",
    healthcheck: offer.get("healthcheck")?.value === true,
  };
}

// Serves one connection. `judge(messages)` gives the variables of the answer; it may take its
// time. `failed()` gives those of a refusal, where an answer is too long for the frame that was agreed.
export class Connection {
  constructor(socket, { judge, failed, maxFrameSize, handshakeTimeout }) {
    Object.assign(this, { socket, judge, failed, most: maxFrameSize });
    this.agreed = 0; // 0 until HELLO
    this.waiting = 0; // questions that have no answer yet
    this.closing = false;
    this.buffer = Buffer.alloc(0);
    socket.setNoDelay?.(true);
    // Timers come before what has arrived: after a pause of this process, read that first.
    const late = () => this.agreed || this.disconnect(new Fault(2, "no HELLO in time"));
    this.timer = setTimeout(() => setImmediate(late), handshakeTimeout);
    socket.on("data", (bytes) => this.read(bytes));
    socket.on("end", () => this.finish()); // a half-close: what was asked is answered yet
    socket.on("drain", () => this.throttle());
    socket.on("error", () => socket.destroy());
    socket.on("close", () => clearTimeout(this.timer));
  }

  read(bytes) {
    this.buffer = this.buffer.length ? Buffer.concat([this.buffer, bytes]) : bytes;
    try {
      while (!this.closing && this.buffer.length >= 4) {
        const length = this.buffer.readUInt32BE();
        if (length > (this.agreed || MOST_BEFORE_HELLO)) throw new Fault(3, "the frame is larger than agreed");
        if (length < 7) throw invalid("the frame is too short");
        if (this.buffer.length < 4 + length) break;
        const body = this.buffer.subarray(4, 4 + length);
        this.buffer = this.buffer.subarray(4 + length);
        this.receive(body);
      }
      this.throttle();
    } catch (fault) {
      if (!(fault instanceof Fault)) throw fault;
      this.disconnect(fault);
    }
  }

  receive(body) {
    const reader = new Reader(body);
    const type = reader.byte(), flags = reader.take(4).readUInt32BE();
    const stream = reader.varint(), id = reader.varint();
    const payload = body.subarray(reader.at);
    if (type === UNSET || (!(flags & FIN) && type <= NOTIFY)) throw new Fault(10, "fragmentation is not supported");
    if (!this.agreed && type !== HAPROXY_HELLO) throw invalid("the first frame is no HELLO");
    if (type === HAPROXY_HELLO) {
      if (this.agreed) throw invalid("a second HELLO");
      if (stream || id) throw invalid("HELLO with a stream or frame id");
      const { size, capabilities, healthcheck } = hello(payload, this.most);
      clearTimeout(this.timer);
      this.agreed = size;
      const answer = items({ version: "2.0", "max-frame-size": size, capabilities });
      // SPOE.txt says UINT32 for max-frame-size; HAProxy reads any integer type.
      this.socket.write(frame(AGENT_HELLO, 0, 0, answer));
      if (healthcheck) this.finish();
    } else if (type === HAPROXY_DISCONNECT) {
      this.disconnect(new Fault(0, "normal"));
    } else if (type === NOTIFY) {
      const messages = [];
      while (reader.more) messages.push([reader.string(), reader.pairs(reader.byte())]);
      this.answer(stream, id, messages, (flags & ABORT) !== 0);
    } // unknown types are skipped (SPOE.txt 3.2.2)
  }

  async answer(stream, id, messages, aborted) {
    this.waiting++;
    const variables = await this.judge(messages, aborted);
    this.waiting--;
    if (this.socket.destroyed || this.socket.writableEnded) return;
    let reply = frame(ACK, stream, id, actions(variables));
    if (reply.length - 4 > this.agreed) reply = frame(ACK, stream, id, actions(this.failed()));
    this.socket.write(reply);
    this.throttle();
    if (this.closing) this.finish();
  }

  // A peer that asks and does not read must not fill our memory.
  throttle() {
    if (this.waiting > 1000 || this.socket.writableLength > 1 << 20) this.socket.pause();
    else this.socket.resume();
  }

  // Takes no more questions, and closes when the last one has its answer.
  finish() {
    this.closing = true;
    if (this.waiting === 0) this.socket.end();
  }

  disconnect(fault) {
    this.closing = true;
    if (this.socket.destroyed || this.socket.writableEnded) return;
    const payload = items({ "status-code": fault.status, message: fault.message });
    this.socket.end(frame(AGENT_DISCONNECT, 0, 0, payload));
    this.socket.resume();
  }
}
