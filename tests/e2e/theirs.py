"""The application of a deployment: a client of its own, two routes, and DeepSeek around them."""

import atexit
import os
import sys
import threading

import requests
from flask import Flask, request
from flask_restful import Api, Resource
from flask_socketio import SocketIO

from deepseek_client.flask import DeepSeek


class TheirClient:
    def chat(self, prompt):
        body = {"model": "deepseek-chat", "messages": [{"role": "user", "content": prompt}]}
        headers = {"Authorization": "Bearer sk-test"}
        reply = requests.post(
            f"{os.environ['UPSTREAM']}/chat/completions", json=body, headers=headers, timeout=60
        )
        reply.raise_for_status()
        return {"text": reply.json()["choices"][0]["message"]["content"]}

    def deaf(self):
        print("deaf", flush=True)
        threading.Event().wait(600)


app = Flask(__name__)
llm = DeepSeek(app, client=TheirClient(), errors="raise")


@app.post("/chat")
def chat():
    return llm.wait(llm.client.chat_async(request.json["prompt"]))


@app.post("/deaf")
def deaf():
    return llm.wait(llm.client.deaf_async())


class RestfulChat(Resource):
    def post(self):
        return llm.wait(llm.client.chat_async(request.json["prompt"]))


Api(app).add_resource(RestfulChat, "/restful")


# What the tests look for besides: a request that is none of ours, and another library's work at the exit.
@app.get("/slow")
def slow():
    print("slow", flush=True)
    threading.Event().wait(600)


atexit.register(lambda: print("flushed", os.getpid(), flush=True))

if __name__ == "__main__":
    SocketIO(app, async_mode="threading").run(app, port=int(sys.argv[1]), allow_unsafe_werkzeug=True)
