-- wrk ... -s wrk.lua URL -- REQUEST_FILE: the bytes of one request again and again; a line of JSON at the end.
-- Where 16 digits stand for a number (traffic.py), each request has a number of its own there.

local NUMBER = "@@@@@@@@@@@@@@@@"

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local bytes = file:read("*a")
  file:close()
  local parts, from = {}, 1
  for at in bytes:gmatch("()" .. NUMBER) do
    parts[#parts + 1] = bytes:sub(from, at - 1)
    from = at + #NUMBER
  end
  parts[#parts + 1] = bytes:sub(from)
  if #parts == 1 then
    wrk.format = function() return bytes end
  else
    local count = 0
    wrk.format = function()
      count = count + 1
      return table.concat(parts, string.format("%016x", count))
    end
  end
end

-- wrk asks only once for what it then sends, unless there is this.
function request() return wrk.format() end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "errors": %d}\n', summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
