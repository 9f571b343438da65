"""What the doctor can say: code (and variant) to level, what, why, remedy. Braces take the values of the check."""

from __future__ import annotations

__all__ = ["TEXTS"]

TEXTS: dict[str, tuple[str, str, str, str]] = {
    # What runs the calls.
    "loop_engine": (
        "hint",
        "LLM_ENGINE=loop runs all awaited calls of a process in one thread.",
        "A client's thread-local data is shared by all calls; a Lock around a request stops them for ever, and code"
        " that computes, or blocks by anything but sockets and time.sleep, holds them up. The log names such code.",
        'call_options(engine="threads") for such calls, or LLM_ENGINE=threads.',
    ),
    "loop_engine/missing": (
        "error",
        "LLM_ENGINE=loop needs greenlet, which is not installed.",
        "The server does not start.",
        "pip install 'deepseek-client-async[loop]'",
    ),
    # Where the settings come from.
    "unreadable_setting": (
        "error",
        "{text}",
        "The server does not start, and ends at a reload (SIGHUP).",
        "Correct it; README and .env.example list the settings and their ranges.",
    ),
    "open_env_file/everybody": (
        "warning",
        ".env holds {secrets} and is open to everybody on this machine (mode {mode:04o}).",
        "Any other user or service of the machine can take them.",
        "chmod 600 .env",
    ),
    "open_env_file/group": (
        "hint",
        ".env holds {secrets} and is open to its group on this machine (mode {mode:04o}).",
        "Any other user or service of the group can take them.",
        "chmod 600 .env",
    ),
    "unread_line": (
        "warning",
        "Line {line} of .env is no assignment.",
        "It is skipped, and what it should set keeps its default.",
        "Write NAME=value; values with blanks or # in quotation marks.",
    ),
    "assigned_twice": (
        "warning",
        ".env assigns {name} more than once.",
        "The last one counts, and whoever edits another one changes nothing.",
        "Leave one.",
    ),
    "token_blanked/file": (
        "warning",
        ".env gives WEB_API_TOKEN a value and makes it blank further down.",
        "The last one counts: THE SERVER ASKS NOBODY FOR A TOKEN.",
        "Remove the blank WEB_API_TOKEN=.",
    ),
    "token_blanked/environment": (
        "warning",
        "WEB_API_TOKEN is blank in the process environment, and has a value in .env.",
        "The environment wins: THE SERVER ASKS NOBODY FOR A TOKEN.",
        "Unset WEB_API_TOKEN where the server is started.",
    ),
    "unread_variable": (
        "warning",
        ".env sets GUNICORN_CMD_ARGS.",
        "gunicorn reads it from the process environment only.",
        "Export it, or say it on gunicorn's command line.",
    ),
    "shadowed": (
        "warning",
        "{name} is set in the process environment, and differently in .env.",
        "The environment wins: what .env says of it has no effect, and a reload does not change that.",
        "Unset {name} where the server is started, or take it out of .env.",
    ),
    "shadowed/switch": (
        "warning",
        "{name} is set in the process environment, and differently in .env.",
        "The environment wins over .env, which `toggle` edits: it cannot roll back.",
        "Unset {name} where the server is started.",
    ),
    "toggle_shadowed": (
        "hint",
        "{name} is set in the process environment.",
        "It wins over .env, which `toggle` edits: it could not roll back.",
        "Unset {name} where the server is started, and set it in .env.",
    ),
    "unknown_variable": (
        "warning",
        "Nothing reads {name}; is {meant} meant?",
        "{meant} keeps its default.",
        "Rename it to {meant}, or remove it.",
    ),
    # Metrics.
    "left_over_metrics": (
        "hint",
        "{number} of the {prefix}* in {directory} belong to servers that have ended.",
        "The next server of the same user removes them; until then they only take space.",
        "Remove them; the number in a name is the process that made it: {example}, for one.",
    ),
    "metrics_directory": (
        "warning",
        "PROMETHEUS_MULTIPROC_DIR={path} cannot be written to.",
        "Each worker counts alone, and /metrics shows those of the one that is asked.",
        "Unset PROMETHEUS_MULTIPROC_DIR: a server makes a directory of its own.",
    ),
    "shared_metrics": (
        "warning",
        "PROMETHEUS_MULTIPROC_DIR={path} is in use by another server (process {pid}).",
        "The one that starts wipes what the other counted, and both show the sum of both.",
        "Unset PROMETHEUS_MULTIPROC_DIR: a server makes a directory of its own.",
    ),
    # gunicorn.
    "no_server": (
        "hint",
        "No gunicorn with DeepSeek(app) runs in this directory.",
        "Its timeouts, threads and addresses could not be looked at.",
        "Run the doctor again while the server runs.",
    ),
    "public_without_token": (
        "warning",
        "{binds} can be reached from other machines, and WEB_API_TOKEN is blank.",
        "Whoever reaches the port makes calls at your account's expense.",
        "Set WEB_API_TOKEN; or HOST=127.0.0.1, behind a proxy that asks who calls.",
    ),
    "worker_timeout": (
        "warning",
        "gunicorn's timeout of {timeout_s:g} s is not above LLM_DEADLINE_S={deadline_s:g}.",
        "It kills a sync worker in the middle of a slow call, whose caller gets no answer instead of a 504.",
        "Make it {needed_s} or more (--timeout, GUNICORN_CMD_ARGS or gunicorn's configuration file).",
    ),
    "graceful_timeout": (
        "warning",
        "gunicorn's graceful timeout of {timeout_s:g} s is below LLM_DEADLINE_S={deadline_s:g}.",
        "A reload or a stop cuts calls that are in flight, and what they cost is lost.",
        "Make it {needed_s} or more (--graceful-timeout, GUNICORN_CMD_ARGS or gunicorn's configuration file).",
    ),
    "container_stop": (
        "hint",
        "gunicorn takes up to {timeout_s:g} s to stop, and this is a container.",
        "`docker stop` kills it after {waits_s} s by default: calls in flight are cut, and what they cost is lost.",
        "Give it {needed_s} s (docker run --stop-timeout, compose: stop_grace_period, Kubernetes: "
        "terminationGracePeriodSeconds).",
    ),
    "keepalive": (
        "hint",
        "gunicorn closes a connection that was idle for {keepalive_s:g} s (keepalive).",
        "A load balancer keeps one for longer, {balancer_s} s by default, and answers 502 when it meets the close.",
        "Behind one, make it {needed_s} (--keep-alive, GUNICORN_CMD_ARGS): above the balancer's idle time.",
    ),
    "proxy_timeout": (
        "hint",
        "LLM_DEADLINE_S={deadline_s:g} is as long as proxies usually wait, {proxy_s} s.",
        "The proxy answers 504 first, and the call goes on for nobody.",
        "Let it wait longer (nginx: proxy_read_timeout), or lower LLM_DEADLINE_S.",
    ),
    "preload": (
        "warning",
        "gunicorn loads the application before it forks (preload).",
        "SIGHUP then reads neither new code nor a new .env: what `toggle` writes waits for a restart.",
        "Take --preload or preload_app out of gunicorn's options.",
    ),
    "one_at_a_time": (
        "hint",
        "LLM_MAX_WORKERS={workers} on sync workers is of use to batches only.",
        "A sync worker serves one request at a time, so that routes of one prompt have {processes} calls in flight on "
        "this host, however many threads the pools have.",
        "Send several prompts together, hand them to a task queue, or give gunicorn threads (gthread).",
    ),
    "threads_over_workers": (
        "hint",
        "{threads} threads of each gunicorn worker take requests, LLM_MAX_WORKERS={workers} make calls.",
        "Of each process's calls {workers} run at a time, the rest wait in the queue.",
        "Set LLM_MAX_WORKERS={threads} if that many calls shall run at once.",
    ),
    "large_batch": (
        "hint",
        "A batch of LLM_BATCH_LIMIT={prompts}, {width} at a time, leaves each call {call_s:.2g} s.",
        "All of a batch share one LLM_DEADLINE_S={deadline_s:g}; what is not done by then fails.",
        "Lower LLM_BATCH_LIMIT, or raise LLM_MAX_WORKERS or LLM_DEADLINE_S.",
    ),
    "open_files": (
        "warning",
        "A worker process may need {need} open files and is allowed {allowed}.",
        "Each call in flight has a connection; beyond the limit calls fail with connection_failed.",
        "Raise the limit (ulimit -n, systemd: LimitNOFILE) to {need} or more, or lower LLM_MAX_WORKERS.",
    ),
    # The API.
    "no_key": (
        "hint",
        "DEEPSEEK_API_KEY is blank.",
        "bin/serve answers from the local sandbox; elsewhere calls of DeepSeekClient fail (not_configured).",
        "Set it in .env to talk to DeepSeek.",
    ),
    "no_key/library": (
        "hint",
        "DEEPSEEK_API_KEY is blank.",
        "Calls of DeepSeekClient fail (not_configured); a client of your own does not read it.",
        "Set it to talk to DeepSeek by DeepSeekClient; else there is nothing to do.",
    ),
    "token_is_key": (
        "warning",
        "WEB_API_TOKEN is the same as DEEPSEEK_API_KEY.",
        "Every caller then knows the key of your account.",
        "Make up another token.",
    ),
    "quoted": (
        "warning",
        "{name} begins and ends with a quotation mark.",
        "The marks are sent too: `docker --env-file` and systemd keep them where a shell takes them away.",
        "Set it without them.",
    ),
    "verbose": (
        "hint",
        "DEEPSEEK_VERBOSE=1 logs prompts and replies.",
        "What users write may be personal.",
        "Set it back to 0 when you have seen enough.",
    ),
    "retired_model/refused": (
        "error",
        "DEEPSEEK_TRANSPORT=0 sends the retired model {model} as it is.",
        "The API refuses it: every call comes back blank.",
        "Set DEEPSEEK_TRANSPORT=1, which sends its successor.",
    ),
    "retired_model": (
        "hint",
        "DEEPSEEK_MODEL={model} is retired.",
        "It goes out as deepseek-flash with thinking {thinking}.",
        "Leave DEEPSEEK_MODEL blank, which means deepseek-chat.",
    ),
    "thinking_model": (
        "warning",
        "{model} thinks before it answers, and the client allows {tokens} tokens for both.",
        "Thinking usually uses them up: the reply is blank and the call fails with bad_reply.",
        "Leave DEEPSEEK_MODEL blank: deepseek-flash without thinking.",
    ),
    "unknown_model": (
        "hint",
        "DEEPSEEK_MODEL={model} is not among the models that this release knows.",
        "If the API does not know it either, every call fails with upstream_rejected.",
        "Check the name ({known}), or leave it blank.",
    ),
    "account_limit": (
        "warning",
        "{hosts} (hosts) x {processes} (gunicorn workers) x {each} ({name}) = {calls} calls in flight; an account may "
        "have {limit}.",
        "The API refuses the rest with 429 (rate_limited), also for other users of the account.",
        "Lower {name} to {fitting}, run fewer gunicorn workers, or share LLM_ACCOUNT_LIMIT={limit}, which the metric "
        "deepseek_account_limit then shows.",
    ),
    "no_transport": (
        "hint",
        "DEEPSEEK_TRANSPORT=0: nothing is installed below the legacy client.",
        "A running call cannot be ended, so that a slow one keeps its thread beyond the deadline; failures come back "
        "as blank text, and LLM_READ_TIMEOUT_S does nothing.",
        "Set it back to 1 once what it was set for is over.",
    ),
    "read_timeout/useless": (
        "hint",
        "LLM_READ_TIMEOUT_S={pause_s:g} is not below LLM_DEADLINE_S={deadline_s:g}.",
        "The deadline always comes first: the setting does nothing but switch the client's own timeout off.",
        "Lower it, or leave it if that is what you want.",
    ),
    "read_timeout/missing": (
        "hint",
        "LLM_DEADLINE_S={deadline_s:g}, but the client gives up when a reply pauses for {pause_s:g} s.",
        "An API that sends nothing while it thinks ends calls as connection_failed long before the deadline.",
        "Set LLM_READ_TIMEOUT_S to the pause that you accept.",
    ),
    "base_url": (
        "error",
        "DEEPSEEK_BASE_URL={url} ends with the path of a call.",
        "The client appends /chat/completions to it: the API answers 404.",
        "Leave that part out.",
    ),
    "key_in_clear": (
        "warning",
        "DEEPSEEK_BASE_URL={url} is not https.",
        "The key and all prompts cross the network in clear.",
        "Use https, unless the network between is yours alone.",
    ),
    "loopback_proxy": (
        "error",
        "{name} sends calls for {host} through a proxy.",
        "It looks for that address on its own machine: every call fails.",
        "Add {host} to NO_PROXY.",
    ),
    "netrc": (
        "error",
        "A netrc file has an entry for {host}.",
        "It replaces the key's header: the API refuses every call (authentication_failed).",
        "Remove the entry (also `default` is one), or set NETRC to an empty file.",
    ),
    "ca_bundle": (
        "error",
        "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which does not exist.",
        "Every call fails before anything is sent.",
        "Correct the path, or unset the variable.",
    ),
    # The server of tasks.
    "queue_extra": (
        "error",
        "CELERY_BROKER_URL is set, and {packages} cannot be loaded.",
        "Tasks are refused with queue_unavailable, and no worker starts.",
        "pip install 'deepseek-client-async[tasks]', or unset CELERY_BROKER_URL.",
    ),
    "queue_unreachable": (
        "error",
        "The queue's server at {place} does not answer: {error}",
        "Tasks are refused with queue_unavailable, and workers wait.",
        "Start it, or correct CELERY_BROKER_URL.",
    ),
    "queue_unreachable/password": (
        "error",
        "The queue's server at {place} refuses the user or the password of CELERY_BROKER_URL.",
        "Tasks are refused with queue_unavailable, and no worker starts.",
        "Correct the password: redis://:PASSWORD@HOST:PORT/0.",
    ),
    "queue_unreadable": (
        "hint",
        "The queue's server at {place} does not say how it is set up: {error}",
        "Its version, memory policy, persistence and clock could not be looked at.",
        "Allow this user INFO and TIME, or look yourself: version 6.2 or newer, noeviction, appendonly, appendfsync.",
    ),
    "queue_version": (
        "error",
        "The queue's server at {place} is version {version}.",
        "It lacks commands that tasks need.",
        "Run Valkey, or Redis {oldest} or newer.",
    ),
    "queue_memory": (
        "error",
        "The queue's server at {place} evicts data when its memory is full (maxmemory-policy {policy}).",
        "Tasks that were accepted disappear without a word.",
        "Set maxmemory-policy noeviction: a full server then refuses new tasks with queue_unavailable.",
    ),
    "queue_memory/unlimited": (
        "hint",
        "The queue's server at {place} has no limit of its memory.",
        "When the machine's memory is used up the system kills a process, most likely this server.",
        "Set maxmemory; an ended task takes 1 kB and more, for TASK_RESULT_TTL_S.",
    ),
    "queue_persistence": (
        "warning",
        "The queue's server at {place} writes no append-only file.",
        "What it accepted since its last snapshot, or ever, is lost when it ends.",
        "Set appendonly yes and appendfsync always.",
    ),
    "queue_persistence/late": (
        "hint",
        "The queue's server at {place} writes tasks down after it has accepted them (appendfsync {how}).",
        "When it is killed, or the machine loses power, those of the last seconds are lost.",
        "Set appendfsync always if no accepted task may be lost; each command then waits for the disk.",
    ),
    "queue_clock": (
        "warning",
        "The clock of the queue's server at {place} differs from this machine's by {difference_s:+.1f} s.",
        "Times of one task in logs and answers do not fit together; certificates and leases may fail.",
        "Let both follow a time server (chrony, systemd-timesyncd).",
    ),
    "queue_without_password": (
        "warning",
        "CELERY_BROKER_URL names {host}, another machine, and has no password.",
        "Whoever reaches that port reads prompts and replies, and makes calls at your account's expense.",
        "Set requirepass there, and redis://:PASSWORD@{host}:PORT/0 here.",
    ),
    "queue_in_clear": (
        "hint",
        "CELERY_BROKER_URL reaches {host} without TLS.",
        "Prompts, replies and the password cross the network in clear.",
        "Use rediss://, unless the network between is yours alone.",
    ),
}
