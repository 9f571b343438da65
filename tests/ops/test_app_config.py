"""The doctor and the toggle beside an application that has settings of its own in `app.config`."""

from pathlib import Path

from deepseek_client.ops import toggle
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


def test_switch_of_the_application(gunicorn, capsys):
    """A switch in `app.config` comes before .env: the toggle names it, and puts .env back."""
    Path("app.py").write_text(APP.replace("LLM_MAX_WORKERS=7", "USE_ASYNC_DEEPSEEK=True"))
    gunicorn()
    assert toggle.main("disable") == 1
    said = capsys.readouterr().err
    assert "the application sets USE_ASYNC_DEEPSEEK in app.config, which comes before .env" in said
    assert not Path(".env").exists()
