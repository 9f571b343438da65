"""What the console says, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LANGUAGES", "TEXTS", "speaker"]

LANGUAGES = {"en": "English", "zh": "中文"}

TEXTS: dict[str, tuple[str, str]] = {
    "title": ("Console", "控制台"),
    "skip": ("Skip to the content", "跳到正文"),
    "sections": ("Sections", "版块"),
    "language": ("Language", "语言"),
    "live": ("Live", "实时"),
    "paused": ("Paused while the tab is hidden", "标签页隐藏时暂停"),
    "lost": ("The console does not answer", "控制台没有响应"),
    "no_script": (
        "Figures move and prompts are sent with JavaScript only.",
        "需要 JavaScript 才能刷新数据和发送提示词。",
    ),
    # Now
    "now": ("Now", "现况"),
    "no_server": (
        "No server of this directory has been found.",
        "在此目录中没有找到正在运行的服务。",
    ),
    "busy": ("Workers busy", "忙碌的工作线程"),
    "busy_of": ("{busy} of {threads}", "{busy} / {threads}"),
    "queued": ("Waiting for a worker", "等待工作线程"),
    "backlog": ("Waiting for gunicorn", "等待 gunicorn"),
    "in_flight": ("Calls in flight", "进行中的调用"),
    "refused": ("Refused in 10 minutes", "10 分钟内拒绝"),
    "breaker": ("Circuit breaker", "熔断器"),
    "breaker_closed": ("closed", "闭合"),
    "breaker_open": ("open in {count}", "{count} 个已断开"),
    "unknown": ("unknown", "未知"),
    "backlog_p95": ("{now}, waits {time} (p95)", "{now}，等待 {time}（p95）"),
    "processes": ("Worker processes", "工作进程"),
    "process": ("Process", "进程"),
    "mode": ("Mode", "模式"),
    "engine": ("Engine", "引擎"),
    "since": ("Since", "起始"),
    "threads": ("Workers", "线程"),
    "is_busy": ("Busy", "忙碌"),
    "is_queued": ("Waiting", "等待"),
    "breakers": ("Open breakers", "断开的熔断器"),
    "together": ("Together", "合计"),
    "charts": ("The last ten minutes", "最近十分钟"),
    "calls": ("Calls", "调用"),
    "waited": ("Waited", "等待时间"),
    "ran": ("Ran", "运行时间"),
    "first": ("First chunk", "首个片段"),
    "tokens": ("Tokens", "令牌"),
    "finish": ("Why answers ended", "回答结束的原因"),
    "pool": ("Pool", "线程池"),
    "per_second": ("per second", "每秒"),
    "seconds": ("seconds", "秒"),
    "number": ("calls", "次调用"),
    "ok": ("answered", "成功"),
    "failed": ("failed", "失败"),
    "was_refused": ("refused", "拒绝"),
    "prompt_tokens": ("prompt", "提示"),
    "completion_tokens": ("completion", "回答"),
    "stop": ("finished", "说完"),
    "length": ("cut for length", "超长截断"),
    "filter": ("content filter", "内容过滤"),
    "other": ("other", "其他"),
    "as_table": ("As a table", "以表格显示"),
    "time": ("Time", "时间"),
    # Try it
    "try": ("Try it", "试一试"),
    "kind": ("What to send", "发送内容"),
    "chat": ("Chat", "对话"),
    "parse": ("Parse", "解析"),
    "batch": ("Batch", "批量"),
    "text": ("Prompt", "提示词"),
    "text_batch": ("Prompts, one in each line", "提示词，每行一条"),
    "text_parse": ("What the player says", "玩家的话"),
    "scene": ("Scene", "场景"),
    "realm": ("Realm", "境界"),
    "target_realm": ("Target realm", "目标境界"),
    "beside": ("Async and sync side by side", "异步与同步并排比较"),
    "send": ("Send", "发送"),
    "sending": ("Waiting for the answer", "正在等待回答"),
    "answer": ("Answer", "回答"),
    "latency": ("Took", "耗时"),
    "attempts": ("Attempts", "尝试次数"),
    "request_id": ("Request id", "请求编号"),
    "code": ("Code", "代码"),
    "no_answer": (
        "The application at {address} does not answer: {failure}.",
        "{address} 处的应用没有响应：{failure}。",
    ),
    "unreadable": (
        "The application answered {status}, and {failure}.",
        "应用返回 {status}，且无法读取：{failure}。",
    ),
    # Sizing
    "sizing": ("Sizing", "容量"),
    "window": ("Over the last", "统计范围"),
    "minute": ("minute", "1 分钟"),
    "ten_minutes": ("ten minutes", "10 分钟"),
    "too_few_calls": (
        "Too few calls in this time to say anything: {calls}, and {fewest} are needed.",
        "此时段内的调用太少，无法判断：{calls} 次，至少需要 {fewest} 次。",
    ),
    "account_limit": (
        "The account's limit is what holds calls up: the API refused {percent} % of the attempts (429). More workers "
        "would be refused more often.",
        "瓶颈是账户限额：API 拒绝了 {percent} % 的尝试（429）。增加线程只会被拒绝得更多。",
    ),
    "account_full": (
        "The account's limit is what holds calls up: they wait {account_waited} for a place in LLM_ACCOUNT_LIMIT.",
        "瓶颈是账户限额：调用等待 LLM_ACCOUNT_LIMIT 中的空位 {account_waited}。",
    ),
    "no_pool": (
        "No pool is in use: no call was made yet, or USE_ASYNC_DEEPSEEK=0 rolls it back.",
        "没有使用线程池：还没有调用，或 USE_ASYNC_DEEPSEEK=0 已回退。",
    ),
    "too_small": (
        "Calls wait {waited} for a thread: raise LLM_MAX_WORKERS to {needed}.",
        "调用等待线程 {waited}：请把 LLM_MAX_WORKERS 提高到 {needed}。",
    ),
    "too_small_refused": (
        "{refused} calls were refused, others wait {waited} for a thread: raise LLM_MAX_WORKERS to {needed}.",
        "{refused} 次调用被拒绝，其余等待线程 {waited}：请把 LLM_MAX_WORKERS 提高到 {needed}。",
    ),
    "server_limit_sync": (
        "Sync workers are the limit, not the pool: {backlog} requests wait for {slots} of them, and the pool is idle "
        "{idle} % of the time. Set WEB_THREADS to {threads}.",
        "瓶颈是同步工作进程，不是线程池：{backlog} 个请求在等待 {slots} 个进程，而线程池有 {idle} % 的时间空闲。"
        "请把 WEB_THREADS 设为 {threads}。",
    ),
    "server_limit": (
        "gunicorn's threads are the limit, not the pool: {backlog} requests wait for {slots} of them, and the pool is "
        "idle {idle} % of the time. Raise WEB_THREADS to {threads}.",
        "瓶颈是 gunicorn 的线程，不是线程池：{backlog} 个请求在等待 {slots} 个线程，而线程池有 {idle} % 的时间空闲。"
        "请把 WEB_THREADS 提高到 {threads}。",
    ),
    "too_large": (
        "The pool is idle {idle} % of the time: LLM_MAX_WORKERS={needed} would do.",
        "线程池有 {idle} % 的时间空闲：LLM_MAX_WORKERS={needed} 就够了。",
    ),
    "fits": (
        "LLM_MAX_WORKERS={workers} fits: {busy} % of the threads are busy, and calls wait {waited}.",
        "LLM_MAX_WORKERS={workers} 合适：{busy} % 的线程忙碌，调用等待 {waited}。",
    ),
    "because": (
        "{rate} calls per second, times {ran} that one of them runs, are {in_flight} at a time on average (Little's "
        "law). {needed} workers in each of {processes} processes are enough in 99 % of all moments.",
        "每秒 {rate} 次调用，乘以每次运行的 {ran}，平均同时有 {in_flight} 次（利特尔法则）。"
        "{processes} 个进程各 {needed} 个线程，在 99 % 的时刻都够用。",
    ),
    "figure": ("Figure", "项目"),
    "value": ("Value", "数值"),
    "rate": ("Calls that arrive", "到达的调用"),
    "rate_value": ("{rate} per second", "每秒 {rate} 次"),
    "ran_mean": ("A call runs, on average", "每次调用的平均运行时间"),
    "ran_p95": ("95 % run no longer than", "95 % 的调用不超过"),
    "waits": ("A call waits for a thread", "调用等待线程的时间"),
    "at_a_time": ("Calls at a time, on average", "平均同时进行的调用"),
    "needed": ("Workers that each process needs", "每个进程需要的线程"),
    "headroom": ("Head-room in that", "其中的余量"),
    "headroom_value": ("{spare} beside the {mean} that run on average", "{spare}，平均运行的 {mean} 之外"),
    "setting": ("LLM_MAX_WORKERS now", "当前的 LLM_MAX_WORKERS"),
    "idle": ("The pool is idle", "线程池空闲"),
    "measured": ("Measured over", "统计时长"),
    "findings": ("What the doctor finds", "医生的诊断"),
    "no_findings": ("Nothing.", "没有问题。"),
    "no_doctor": ("The doctor cannot say.", "医生无法给出诊断。"),
    # Tasks
    "tasks": ("Tasks", "任务"),
    "tasks_queued": ("Queued", "排队中"),
    "tasks_running": ("Running", "运行中"),
    "tasks_completed": ("Done in the last hour", "一小时内完成"),
    "tasks_failed": ("Failed in the last hour", "一小时内失败"),
    "tasks_oldest": ("The oldest has waited", "最早的任务已等待"),
    "tasks_workers": ("Worker processes", "工作进程"),
    "none_waits": ("none waits", "无等待"),
    "queue_away": (
        "The queue's server does not answer, so that nothing is known of its tasks now.",
        "队列服务器没有响应，暂时无法得知任务情况。",
    ),
    "open_tasks": ("Running, and first in the queue", "运行中以及排在最前的任务"),
    "no_open_tasks": ("No task waits or runs.", "没有等待或运行中的任务。"),
    "task": ("Task", "任务"),
    "status": ("Status", "状态"),
    "method": ("Method", "方法"),
    "age": ("Submitted ago", "提交至今"),
    "action": ("Action", "操作"),
    "cancel": ("Cancel", "取消"),
    "task_pending": ("queued", "排队中"),
    "task_started": ("running", "运行中"),
    "task_pending_said": ("The task still waits.", "任务仍在排队。"),
    "task_started_said": ("The task still runs.", "任务仍在运行。"),
    "task_cancelled_said": ("The task was cancelled.", "任务已取消。"),
    "task_completed_said": ("The task was done before.", "任务此前已完成。"),
    "task_failed_said": ("The task had failed before.", "任务此前已失败。"),
    "task_unknown_said": ("There is no such task any more.", "该任务已不存在。"),
    # Login
    "login": ("Sign in", "登录"),
    "token": ("Token (WEB_API_TOKEN)", "令牌（WEB_API_TOKEN）"),
    "wrong_token": ("This is not the token.", "令牌不正确。"),
}
"""By key: English, Chinese."""


def speaker(language: str) -> Callable[..., str]:
    """Returns a function that gives the text of a key in this language, with values in it.

    Args:
        language: one of `LANGUAGES`.
    """
    place = list(LANGUAGES).index(language)
    return lambda key, **values: TEXTS[key][place].format(**values)
