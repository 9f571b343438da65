"""Blocking clients that nobody here wrote, each set up to ask the stub of sdk_stub.py for its own token.

Each is a function that takes the stub and gives an object whose `ask(token)` blocks. Libraries are imported inside.
"""

from __future__ import annotations

import functools
import importlib
import json
import ssl
import urllib.request
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

from .sdk_stub import PHASES, StubServer

__all__ = ["CLIENTS", "Client"]

_TIMEOUT_S = 60
_MODEL = "m"
_NO_TLS = tuple(phase for phase in PHASES if phase != "tls")


class Client(NamedTuple):
    """A client, the package that it comes with, and where it can hang on the stub.

    `has_python_sockets` is False for a C library that opens its own.
    """

    make: Callable[[StubServer], Any]
    package: str
    phases: tuple[str, ...] = PHASES
    has_python_sockets: bool = True


def _asking(ask: Callable[[str], str]) -> Any:
    return SimpleNamespace(ask=ask)


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _messages(token: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": token}]


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _urllib(stub: StubServer) -> Any:
    context = _unverified()

    def ask(token: str) -> str:
        request = urllib.request.Request(f"{stub.url}/x", token.encode())
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as reply:
            return str(json.load(reply)["token"])

    return _asking(ask)


def _requests(stub: StubServer, *, is_plain: bool = False, pool_block: bool = False) -> Any:
    requests = _module("requests")
    base = requests.adapters.HTTPAdapter
    session = requests.Session()
    if not is_plain:
        kind = base if pool_block else type("Special", (base,), {})
        for scheme in ("http://", "https://"):
            session.mount(scheme, kind(pool_maxsize=4, pool_block=pool_block))

    def ask(token: str) -> str:
        return str(session.post(f"{stub.url}/x", data=token, timeout=_TIMEOUT_S).json()["token"])

    return _asking(ask)


def _urllib3(stub: StubServer) -> Any:
    pool = _module("urllib3").PoolManager(cert_reqs="CERT_NONE", timeout=_TIMEOUT_S)
    return _asking(lambda token: str(pool.request("POST", f"{stub.url}/x", body=token).json()["token"]))


def _httpx(stub: StubServer, *, name: str = "httpx") -> Any:
    client = _module(name).Client(verify=_unverified(), timeout=_TIMEOUT_S)
    return _asking(lambda token: str(client.post(f"{stub.url}/x", content=token).json()["token"]))


def _openai(stub: StubServer) -> Any:
    client = _module("openai").OpenAI(api_key="k", base_url=f"{stub.url}/v1", timeout=_TIMEOUT_S)
    create = client.chat.completions.create
    return _asking(lambda token: create(model=_MODEL, messages=_messages(token)).choices[0].message.content)


def _anthropic(stub: StubServer) -> Any:
    client = _module("anthropic").Anthropic(api_key="k", base_url=stub.url, timeout=_TIMEOUT_S)
    create = client.messages.create
    return _asking(
        lambda token: create(model=_MODEL, messages=_messages(token), max_tokens=9).content[0].text
    )


def _boto3(stub: StubServer) -> Any:
    client = _module("boto3").client(
        "lambda",
        endpoint_url=stub.url,
        region_name="x",
        aws_access_key_id="k",
        aws_secret_access_key="k",
        verify=False,
    )

    def ask(token: str) -> str:
        with closing(client.invoke(FunctionName="f", Payload=token.encode())["Payload"]) as payload:
            return str(json.load(payload)["token"])

    return _asking(ask)


def _redis(stub: StubServer) -> Any:
    client = _module("redis").Redis(port=stub.port, protocol=2, ssl=stub.phase == "tls", ssl_cert_reqs="none")
    return _asking(lambda token: client.execute_command("ECHO", token).decode())


def _elasticsearch(stub: StubServer) -> Any:
    client = _module("elasticsearch").Elasticsearch(
        stub.url, request_timeout=_TIMEOUT_S, verify_certs=False, ssl_show_warn=False
    )

    def ask(token: str) -> str:
        found = client.search(index="i", query={"match": {"text": token}})
        return str(found["hits"]["hits"][0]["_source"]["token"])

    return _asking(ask)


def _ollama(stub: StubServer) -> Any:
    client = _module("ollama").Client(host=stub.url, timeout=_TIMEOUT_S)
    return _asking(lambda token: client.chat(model=_MODEL, messages=_messages(token)).message.content)


def _groq(stub: StubServer) -> Any:
    create = _module("groq").Groq(api_key="k", base_url=stub.url, timeout=_TIMEOUT_S).chat.completions.create
    return _asking(lambda token: create(model=_MODEL, messages=_messages(token)).choices[0].message.content)


def _together(stub: StubServer) -> Any:
    client = _module("together").Together(api_key="k", base_url=f"{stub.url}/v1", timeout=_TIMEOUT_S)
    create = client.chat.completions.create
    return _asking(lambda token: create(model=_MODEL, messages=_messages(token)).choices[0].message.content)


def _zhipuai(stub: StubServer) -> Any:
    client = _module("zhipuai").ZhipuAI(api_key="k.k", base_url=stub.url, timeout=_TIMEOUT_S)
    create = client.chat.completions.create
    return _asking(lambda token: create(model=_MODEL, messages=_messages(token)).choices[0].message.content)


def _mistral(stub: StubServer) -> Any:
    try:
        kind = _module("mistralai.client").Mistral
    except (ImportError, AttributeError):
        kind = _module("mistralai").Mistral
    client = kind(api_key="k", server_url=stub.url, timeout_ms=_TIMEOUT_S * 1000)
    complete = client.chat.complete
    return _asking(lambda token: complete(model=_MODEL, messages=_messages(token)).choices[0].message.content)


def _cohere(stub: StubServer) -> Any:
    client = _module("cohere").ClientV2(api_key="k", base_url=stub.url, timeout=_TIMEOUT_S)
    return _asking(lambda token: client.chat(model=_MODEL, messages=_messages(token)).message.content[0].text)


def _gemini(stub: StubServer) -> Any:
    genai = _module("google.genai")
    client = genai.Client(api_key="k", http_options={"base_url": stub.url, "timeout": _TIMEOUT_S * 1000})
    return _asking(lambda token: client.models.generate_content(model=_MODEL, contents=token).text)


def _litellm(stub: StubServer) -> Any:
    completion = functools.partial(
        _module("litellm").completion, f"openai/{_MODEL}", api_base=f"{stub.url}/v1", api_key="k"
    )
    return _asking(
        lambda token: completion(messages=_messages(token), timeout=_TIMEOUT_S).choices[0].message.content
    )


def _langchain(stub: StubServer, *, has_own_threads: bool = False) -> Any:
    chat = _module("langchain_openai").ChatOpenAI(
        model=_MODEL, api_key="k", base_url=f"{stub.url}/v1", timeout=_TIMEOUT_S
    )
    if has_own_threads:
        return _asking(lambda token: str([each.content for each in chat.batch([token, token])][-1]))
    return _asking(lambda token: str(chat.invoke(token).content))


def _hugging_face(stub: StubServer) -> Any:
    client = _module("huggingface_hub").InferenceClient(
        base_url=f"{stub.url}/v1", token="k", timeout=_TIMEOUT_S
    )
    return _asking(lambda token: client.chat_completion(_messages(token)).choices[0].message.content)


def _dashscope(stub: StubServer) -> Any:
    call = _module("dashscope").Generation.call
    _module("dashscope").base_http_api_url = stub.url
    return _asking(lambda token: call(model=_MODEL, prompt=token, api_key="k").output.text)


def _psycopg(stub: StubServer) -> Any:
    options = "sslmode=disable gssencmode=disable user=u dbname=d connect_timeout=60"

    def ask(token: str) -> str:
        with _module("psycopg").connect(
            f"host=127.0.0.1 port={stub.port} {options}", autocommit=True
        ) as connection:
            return str(connection.execute(f"select '{token}'").fetchone()[0])

    return _asking(ask)


def _pymysql(stub: StubServer) -> Any:
    def ask(token: str) -> str:
        _module("pymysql").connect(host="127.0.0.1", port=stub.port, user="u", connect_timeout=_TIMEOUT_S)
        return token

    return _asking(ask)


def _pycurl(stub: StubServer) -> Any:
    def ask(token: str) -> str:
        curl, received = _module("pycurl").Curl(), bytearray()
        for option, value in (
            ("URL", f"{stub.url}/x"),
            ("POSTFIELDS", token),
            ("WRITEFUNCTION", received.extend),
        ):
            curl.setopt(getattr(curl, option), value)
        try:
            curl.perform()
        finally:
            curl.close()
        return str(json.loads(received)["token"])

    return _asking(ask)


CLIENTS = {
    "urllib": Client(_urllib, ""),
    "requests, plain": Client(functools.partial(_requests, is_plain=True), "requests"),
    "requests, an adapter of its own": Client(_requests, "requests"),
    "requests, pool_block": Client(functools.partial(_requests, pool_block=True), "requests"),
    "urllib3": Client(_urllib3, "urllib3"),
    "httpx": Client(_httpx, "httpx"),
    "httpx2": Client(functools.partial(_httpx, name="httpx2"), "httpx2"),
    "openai": Client(_openai, "openai"),
    "anthropic": Client(_anthropic, "anthropic"),
    "boto3": Client(_boto3, "boto3"),
    "redis": Client(_redis, "redis"),
    "elasticsearch": Client(_elasticsearch, "elasticsearch"),
    "ollama": Client(_ollama, "ollama"),
    "groq": Client(_groq, "groq"),
    "together": Client(_together, "together"),
    "zhipuai": Client(_zhipuai, "zhipuai"),
    "mistral": Client(_mistral, "mistralai"),
    "cohere": Client(_cohere, "cohere"),
    "gemini": Client(_gemini, "google-genai"),
    "litellm": Client(_litellm, "litellm"),
    "langchain": Client(_langchain, "langchain-openai"),
    "langchain, batch": Client(functools.partial(_langchain, has_own_threads=True), "langchain-openai"),
    "hugging face": Client(_hugging_face, "huggingface_hub"),
    "dashscope": Client(_dashscope, "dashscope"),
    "pymysql": Client(_pymysql, "PyMySQL", ("connect",)),
    "psycopg": Client(_psycopg, "psycopg", _NO_TLS, has_python_sockets=False),
    "pycurl": Client(_pycurl, "pycurl", has_python_sockets=False),
}
