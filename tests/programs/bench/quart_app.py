"""The same route as a new asynchronous application would have it: Quart, and one httpx2 client per process."""

from __future__ import annotations

import os
import ssl

import httpx2
from quart import Quart, request

from .servers import CONNECTIONS
from .wire import body_of, text_in

__all__ = ["app"]

app = Quart(__name__)


@app.before_serving
async def open_client() -> None:
    app.client = httpx2.AsyncClient(
        verify=ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"]),
        limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        headers={"Authorization": f"Bearer {os.environ['DEEPSEEK_API_KEY']}"},
        timeout=60,
    )


@app.after_serving
async def close_client() -> None:
    await app.client.aclose()


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/api/llm/chat")
async def chat() -> dict[str, str]:
    prompt = (await request.get_json())["prompt"]
    reply = await app.client.post(f"{os.environ['DEEPSEEK_BASE_URL']}/chat/completions", json=body_of(prompt))
    return {"text": text_in(reply.raise_for_status().json()), "mode": "async"}
