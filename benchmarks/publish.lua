-- Requests of benchmarks/outside.py for wrk. What to send comes in the environment, so that it's said in one place.
local streams = tonumber(os.getenv("BENCH_STREAMS"))
local batch = tonumber(os.getenv("BENCH_BATCH"))
local form = os.getenv("BENCH_FORM")
local has_ids = os.getenv("BENCH_IDS") == "1"
local before, after = os.getenv("BENCH_BEFORE"), os.getenv("BENCH_AFTER")
local random, format, concat = math.random, string.format, table.concat
local heads = {}

function init(args)
  math.randomseed(tonumber(os.getenv("BENCH_SEED")))
  for number = 0, streams - 1 do
    heads[number] = "POST " .. format(os.getenv("BENCH_PATH"), format("%s%02d", os.getenv("BENCH_PREFIX"), number))
      .. " HTTP/1.1\r\nHost: localhost\r\nContent-Type: " .. os.getenv("BENCH_TYPE") .. "\r\nContent-Length: "
  end
end

local function data()
  return before .. random(100000, 999999) .. after
end

local function packet()
  if form == "payload" then return data() end
  if not has_ids then return '{"data":' .. data() .. "}" end
  return format('{"id":"%08x-%04x-4%03x-a%03x-%06x%06x","data":%s}', random(0, 0xffffffff), random(0, 0xffff),
    random(0, 0xfff), random(0, 0xfff), random(0, 0xffffff), random(0, 0xffffff), data())
end

function request()
  local body
  if batch == 1 then
    body = packet()
  else
    local packets = {}
    for number = 1, batch do packets[number] = packet() end
    body = form == "lines" and concat(packets, "\n") or "[" .. concat(packets, ",") .. "]"
  end
  return heads[random(0, streams - 1)] .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(format('{"requests":%d,"seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
