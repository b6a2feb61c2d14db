-- No byte passes after the credential's end: the filter of the backends whose policy says `streams = true`.
--
-- HAProxy's timeouts measure silence, so a stream that is never silent outlives any of them. This filter sees
-- each piece of an upload, of a download, of an event stream and of both directions of a WebSocket. The first
-- piece at or after `txn.iam.expires` raises an error, which ends the stream; HAProxy logs one alert for it.
--
-- A filter is asked for every stream of its backend (some microseconds), so it stands only where streams live,
-- and it looks at data only of what may outlive its request: `txn.iam_live` is set by the rules of haproxy.cfg
-- where a message is not complete when its headers are. A tunnel's data arrive as plain bytes (`tcp_payload`),
-- a body's as HTTP (`http_payload`). `filter.wake_time` is not used: it spins in HAProxy 3.0.

local Live = {}
Live.id = "iam-live"
Live.flags = filter.FLT_CFG_FL_HTX
Live.__index = Live

function Live:new()
  return setmetatable({}, Live)
end

-- Both directions, once their headers have passed the rules.
function Live:http_headers(txn, message)
  if txn:get_var("txn.iam_live") ~= nil or txn:get_var("txn.iam_tunnel") ~= nil then
    filter.register_data_filter(self, message.channel)
  end
end

local function check(self, txn)
  if self.deadline == nil then
    -- Without an expiry nothing may stream.
    self.deadline = tonumber(txn:get_var("txn.iam.expires")) or 0
  end
  if core.now().sec >= self.deadline and txn:get_var("txn.iam_renew") ~= nil then
    -- A backend with `renew = true`: a fresh credential may have moved the end in the stream's entry.
    self.deadline = math.max(self.deadline, tonumber(txn.f:sc_get_gpt0(2)) or 0)
  end
  if core.now().sec >= self.deadline then
    -- The mark, and by the entry's age the moment, for the agent's record.
    txn.f:sc_inc_gpc0(2)
    error("iam-live: stream ended, its credential has expired")
  end
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
