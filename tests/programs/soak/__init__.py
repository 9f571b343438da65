"""What bin/soak runs: the application under gunicorn, over an API that fails in every way, for minutes to a day.

`plan` says when there is load and when rest, `faults` what the sandbox answers, `calls` what the clients send,
`answers` what may come back. `processes` starts and ends what runs, `load` is the clients, `idle` those that connect
and say nothing, `disk` is where the application writes, and fills up. `worker` looks at the worker
process through /proc, `soaking` runs the plan, `verdict` compares what was seen, `report` and `progress` show it.
"""
