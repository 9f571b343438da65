"""The doctor beside an application that sets its limits itself."""

from pathlib import Path

from deepseek_client.ops.doctor.situation import read

APP = """
from flask import Flask
from deepseek_client.flask import DeepSeek

app = Flask(__name__)
app.config.update(LLM_MAX_WORKERS=7, DEEPSEEK_API_KEY="sk-of-the-config")
DeepSeek(app)
"""


def test_limit_of_the_application(gunicorn):
    """What stands in `app.config` counts for the doctor as it does for the workers, and no key of it is told."""
    Path("app.py").write_text(APP)
    Path(".env").write_text("LLM_MAX_WORKERS=3\n")
    gunicorn()
    (situation,) = read()
    assert situation.settings.max_workers == 7
    (file,) = Path(".deepseek").iterdir()
    assert "sk-of-the-config" not in file.read_text()
