-- wrk posts a prompt, and counts the answers that the contract knows, and all others.
wrk.method = "POST"
wrk.body = '{"prompt": "x"}'
wrk.headers["Content-Type"] = "application/json"

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  served, refused, wrong = 0, 0, 0
end

function response(status, headers, body)
  if status == 200 and body:find('"mode":"async"', 1, true) then
    served = served + 1
  elseif status == 503 and headers["Retry-After"] and body:find('"code":"overloaded"', 1, true) then
    refused = refused + 1
  else
    wrong = wrong + 1
  end
end

function done(summary, latency, requests)
  local sums = { served = 0, refused = 0, wrong = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(sums) do
      sums[name] = sums[name] + thread:get(name)
    end
  end
  local errors = summary.errors
  io.write(string.format(
    '{"served": %d, "refused": %d, "wrong": %d, "broken": %d, "late": %d}\n',
    sums.served, sums.refused, sums.wrong, errors.connect + errors.read + errors.write, errors.timeout))
end
