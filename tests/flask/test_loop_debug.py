import os
import re
import subprocess
import sys
from pathlib import Path

from support.patience import GIVE_UP_S

ROOT = Path(__file__).parents[2]

SCRIPT = """
import logging, time
from flask import Flask
from deepseek_client import Settings
from deepseek_client.flask import SharedLoop
from webapp import create_app

logging.basicConfig()
app = Flask(__name__)
SharedLoop(app)

@app.get("/good")
async def well_behaved():
    return "good"

@app.get("/bad")
async def a_view_that_blocks():
    time.sleep(0.15)
    return "bad"

client = app.test_client()
print(client.get("/good").text, client.get("/bad").text)
print(create_app(Settings()).test_client().post("/api/llm/chat", json={"prompt": "x"}).get_json()["code"])
"""


def test_a_view_that_blocks_the_loop_is_named():
    """With PYTHONASYNCIODEBUG=1 everything works, and what blocks the loop for over 100 ms is logged by its name."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
    )
    assert done.stdout.split() == ["good", "bad", "not_configured"], done.stderr
    # On a busy machine other steps may take that long, too.
    blocking = [line for line in done.stderr.splitlines() if re.search(r" took [0-9.]+ seconds$", line)]
    assert any("name='a_view_that_blocks'" in line for line in blocking), done.stderr
