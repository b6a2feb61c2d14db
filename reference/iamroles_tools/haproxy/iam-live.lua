-- No byte passes after the credential's end, and nothing stays open: the filter of the backends whose policy
-- says `streams = true`.
--
-- HAProxy's timeouts measure silence, so a stream that is never silent outlives any of them. This filter sees
-- each piece of an upload, of a download, of an event stream and of both directions of a WebSocket, and is
-- woken when the credential ends. The first call at or after the deadline raises an error, which ends the
-- stream; HAProxy logs one alert for it. (`return filter.ERROR` is ignored by HAProxy in these two callbacks.)
--
-- A filter is asked for every stream of its backend (some microseconds), so it stands only where streams live,
-- and it looks at data only of what may outlive its request: `txn.iam_live` is set by the rules of haproxy.cfg
-- where a message is not complete when its headers are. A tunnel's data arrive as plain bytes (`tcp_payload`),
-- a body's as HTTP (`http_payload`).
--
-- The wake-up. `filter.wake_time` sets the moment at which HAProxy calls again, data or none. It does not reset
-- it: a call at that moment that neither sets it anew nor raises an error is repeated at once, some 100,000
-- times a second, until HAProxy's watchdog aborts the process. So every call of `check` ends in one or the other.
-- Raising an error resets it (`http_reply_and_close` of HAProxy, the same from 2.6 to 3.4). A message that has ended is
-- looked at no more, so `http_end` must move the moment away, or HAProxy 2.8 to 3.2 repeat that as fast.
--
-- The clock. `core.now()` and HAProxy's timers are monotonic: they ignore a step of the system's clock, and each
-- stretch beyond 0.1 s in which the host did not let HAProxy run. They stay behind by that for ever. The fetch
-- `date` is the system's clock. So it decides, and an idle stream looks at it at least every LONGEST.

local Live = {}
Live.id = "iam-live"
Live.flags = filter.FLT_CFG_FL_HTX
Live.__index = Live

-- Milliseconds before the end at which a stream is ended. HAProxy reads the clock once for all that one look at
-- the sockets brought, and ending a stream takes it some 0.1 ms: at least LAST, so that no byte leaves late;
-- spread from FIRST on, so that a thousand streams with one end do not end in one moment.
local FIRST, LAST = 40, 10
-- Milliseconds between two looks at the clock; and once the client has closed its side.
local LONGEST, HALF = 60000, 250
-- Milliseconds, 12 days: HAProxy has no word for never.
local NEVER = 2 ^ 30

function Live:new()
  return setmetatable({}, Live)
end

-- Each direction once its headers have passed the rules, and a tunnel's both once the server has agreed to it: until
-- then `timeout server` ends a request that waits for its answer.
function Live:http_headers(txn, message)
  if txn:get_var("txn.iam_live") ~= nil then
    filter.register_data_filter(self, message.channel)
    if txn:get_var("txn.iam_tunnel") ~= nil and message.channel:is_resp() then
      filter.register_data_filter(self, txn.req)
    end
  end
end

function Live:http_end(txn, message)
  filter.wake_time(NEVER)
end

local function check(self, txn)
  if self.deadline == nil then
    -- Without an expiry nothing may stream.
    self.early = math.random(LAST, FIRST)
    self.deadline = 1000 * (tonumber(txn:get_var("txn.iam.expires")) or 0) - self.early
  end
  local now = txn.f:date(0, "ms")
  local longest = LONGEST
  if not txn.req:may_recv() then
    -- HAProxy's `shutdown session` does nothing to a tunnel whose client has closed its side: the agent, which sees it
    -- live on, puts an end into its entry.
    longest = HALF
    self.deadline = math.min(self.deadline, 1000 * (tonumber(txn.f:sc_get_gpt0(2)) or 0) - self.early)
  end
  if now >= self.deadline and txn:get_var("txn.iam_renew") ~= nil then
    -- A backend with `renew = true`: a fresh credential may have moved the end in the stream's entry.
    self.deadline = math.max(self.deadline, 1000 * (tonumber(txn.f:sc_get_gpt0(2)) or 0) - self.early)
  end
  local left = self.deadline - now
  if left <= 0 then
    -- The mark, for the agent's record.
    txn.f:sc_inc_gpc0(2)
    error("iam-live: stream ended, its credential has expired")
  end
  filter.wake_time(math.min(left, longest))
end

function Live:http_payload(txn, message)
  check(self, txn)
end

function Live:tcp_payload(txn, channel)
  check(self, txn)
end

core.register_filter("iam-live", Live, function(instance, arguments)
  return instance
end)
