"""The application of a deployment that streams: OpenAI's client, and one line around it."""

import atexit
import os
from pathlib import Path

import requests
from flask import Flask, Response, request
from openai import OpenAI

from deepseek_client import asyncify
from deepseek_client.flask import DeepSeek, sse

app = Flask(__name__)
if "LEFT" in os.environ:
    atexit.register(Path(os.environ["LEFT"]).touch)
llm = DeepSeek(
    app, client=asyncify(OpenAI(base_url=os.environ["UPSTREAM"], api_key="sk-test", max_retries=0))
)


@app.post("/stream")
def stream():
    messages = [{"role": "user", "content": request.json["prompt"]}]
    call = llm.client.chat.completions.create(model="deepseek-flash", messages=messages, stream=True)
    return Response(sse(llm.stream(call)), mimetype="text/event-stream")


@app.post("/lines")
def lines():
    return Response(sse(llm.stream(lines_of(request.json["prompt"]))), mimetype="text/event-stream")


@asyncify
def lines_of(prompt):
    body = {
        "model": "deepseek-flash",
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
    }
    headers = {"Authorization": "Bearer sk-test"}
    url = f"{os.environ['UPSTREAM']}/chat/completions"
    with requests.post(url, json=body, headers=headers, stream=True, timeout=60) as reply:
        for line in reply.iter_lines(chunk_size=1):
            if line:
                yield line.decode()


@app.get("/busy")
def busy():
    return asyncify(llm.client)._path_root.caller.pool.stats()
