"""A stranger's code: a Flask application. mypy and pyright read it against the installed package."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from deepseek_client import asyncify
from deepseek_client.flask import DeepSeek, sse


class TheirClient:
    def chat(self, prompt: str) -> dict[str, Any]:
        return {"text": prompt}


llm = DeepSeek(client=TheirClient(), errors="swallow", metrics_path="/metrics")


def create_app() -> Flask:
    app = Flask(__name__)
    llm.init_app(app)

    @app.post("/plain")
    def plain() -> dict[str, Any]:
        answer: dict[str, Any] = llm.wait(llm.client.chat_async(request.get_json()["prompt"]))
        return answer

    @app.post("/async")
    async def awaited() -> dict[str, Any]:
        answer: dict[str, Any] = await llm.client.chat_async(request.get_json()["prompt"])
        return answer

    @app.post("/stream")
    def streamed() -> Response:
        call = asyncify(llm.client).words(request.get_json()["prompt"])
        return Response(sse(llm.stream(call)), mimetype="text/event-stream")

    return app


async def length(text: str) -> int:
    return len(text)


def what_is_wrong() -> None:
    wrong: str = llm.wait(length("hello"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wrong)
    llm.wait("hello")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
