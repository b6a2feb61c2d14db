-- Asks the service about a request, as nginx's auth_request does, and keeps its answer as txn.iam.*.
--
-- Everything fails closed: only an answer that holds all of itself sets `allow`, and does so last. Without one
-- the rules that follow refuse with 503.

local agent = os.getenv("IAM_AGENT_1")
local texts = { "reason", "error", "role", "principal", "session", "issuer", "rule", "backend" }

local function only(headers, name)
    local values = headers[name]
    if values == nil or values[1] ~= nil then return nil end
    return values[0]
end

local function hex(text)
    return (text:gsub(".", function(letter) return string.format("%02x", letter:byte()) end))
end

core.register_action("auth-request", { "http-req" }, function(txn)
    local asked = { host = { agent } }
    local function say(name, value)
        if value == nil then return end
        local text = tostring(value)
        -- What is not plain travels as hex: it can neither end a header nor begin another. The rest goes as it is,
        -- because the whole question must fit into one buffer of HAProxy's.
        if text:find("^[!-~][ -~]*[!-~]$") then asked["x-asked-" .. name] = { text }
        else asked["x-hex-" .. name] = { hex(text) } end
    end
    say("authorization", txn.f:req_fhdr("authorization"))
    say("authorization-count", txn.f:req_fhdr_cnt("authorization"))
    say("role", txn:get_var("txn.iam_requested_role"))
    say("method", txn.f:method())
    say("host", txn.f:req_fhdr("host"))
    say("path", txn.f:path())
    say("src", txn.f:src())
    local answer = core.httpclient():get({ url = "http://" .. agent .. "/auth", headers = asked, timeout = 2000 })
    if answer == nil or answer.status ~= 200 or answer.headers == nil then return end
    local verdict, status = only(answer.headers, "x-verdict"), tonumber(only(answer.headers, "x-status"))
    if (verdict ~= "allow" and verdict ~= "refuse") or status == nil then return end
    for _, name in ipairs(texts) do
        local value = only(answer.headers, "x-iam-" .. name)
        if value ~= nil then
            txn:set_var("txn.iam." .. name, (value:gsub("%x%x", function(two) return string.char(tonumber(two, 16)) end)))
        end
    end
    local expires = tonumber(only(answer.headers, "x-iam-expires"))
    if expires ~= nil then txn:set_var("txn.iam.expires", expires) end
    txn:set_var("txn.iam.status", status)
    txn:set_var("txn.iam.allow", verdict == "allow")
end)
