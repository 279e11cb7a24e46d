-- wrk ... -s wrk.lua URL -- REQUEST_FILE: the bytes of one request again and again; a line of JSON at the end.

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local bytes = file:read("*a")
  file:close()
  -- wrk asks once for what it then sends.
  wrk.format = function() return bytes end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "errors": %d}\n', summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
