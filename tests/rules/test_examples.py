"""What the documents tell a reader to type, and where they lead; test_recipes runs their Python."""

import os
import re
import shlex
import subprocess
import sys

import requests
import yaml
from support import documents
from support.documents import CHINESE, DEPLOYMENT, DOCUMENTS, README, ROOT, blocks, codes_in
from support.patience import GIVE_UP_S

from deepseek_client import AsyncDeepSeekClient, __main__
from deepseek_client.sandbox.__main__ import _parser as sandbox_parser
from deepseek_client.telemetry import logs
from webapp.app import create_app


def commands():
    """The lines of the documents' sh blocks, and the commands in their prose, as words."""
    lines = [
        line for document in DOCUMENTS for block in blocks(document, "sh") for line in block.text.splitlines()
    ]
    inline = [code for document in DOCUMENTS for code in codes_in(documents.prose_of(document))]
    return [shlex.split(line) for line in lines], [
        code.split() for code in inline if re.match(r"(bin/|deepseek-client )", code)
    ]


def test_commands_are_understood():
    """Each command of ours in a document exists and takes the arguments that stand there."""
    lines, inline = commands()
    assert lines
    for words in [*lines, *inline]:
        program, *arguments = words
        if program.startswith("bin/"):
            assert os.access(ROOT / program, os.X_OK), program
        if program in ("bin/doctor", "bin/toggle-async", "bin/tune"):
            program, arguments = (
                "deepseek-client",
                [program.removeprefix("bin/").partition("-")[0], *arguments],
            )
        if program != "deepseek-client" or arguments in (["toggle"], []):
            continue
        if arguments[0] == "sandbox":
            sandbox_parser().parse_args(arguments[1:])
        else:
            __main__._parser().parse_args(arguments)


def test_curl_lines(settings, sandbox):
    """What the documents send by curl is answered, by the application or by the sandbox."""
    app = create_app(settings).test_client()
    found = [words for words in commands()[0] if words[0] == "curl"]
    assert found
    for words in found:
        place, path = re.fullmatch(r"http://127.0.0.1:(\d+)(/.*)", words[1]).groups()
        data = words[words.index("-d") + 1]
        if place == "5000":
            answer = app.post(path, data=data.encode(), content_type="application/json")
        else:
            answer = requests.post(f"{sandbox.url}{path}", data=data.encode(), timeout=GIVE_UP_S)
        assert answer.status_code == 200
    sandbox.reset()


def test_gunicorn_line():
    """The command that runs the application is one that gunicorn accepts."""
    [line] = [words for words in commands()[0] if words[0] == "gunicorn" and "-c" in words]
    command = [sys.executable, "-m", "gunicorn", "--check-config", *line[1:]]
    subprocess.run(command, cwd=ROOT, check=True, timeout=GIVE_UP_S, stderr=subprocess.PIPE)


def test_compose_file():
    """The container's command is one that gunicorn accepts; it listens to others, keeps connections and has time."""
    [block] = blocks(DEPLOYMENT, "yaml")
    web = yaml.safe_load(block.text)["services"]["web"]
    command = [sys.executable, "-m", "gunicorn", "--print-config", *web["command"][1:]]
    env = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in web["environment"].items()}}
    done = subprocess.run(
        command, cwd=ROOT, env=env, check=True, timeout=GIVE_UP_S, capture_output=True, text=True
    )
    options = dict(re.findall(r"^([a-z_]+) += (.*)$", done.stdout, re.MULTILINE))
    assert "0.0.0.0:5000" in options["bind"]
    assert options["worker_class"] == "gthread"
    assert int(options["keepalive"]) > 60
    assert int(web["stop_grace_period"].removesuffix("s")) > int(options["graceful_timeout"])


def test_log_line(settings, caplog):
    """The log lines that the documents show have the facts of a real one, in their order."""
    logs.install()
    with caplog.at_level("INFO", logger="deepseek_client.calls"):
        AsyncDeepSeekClient(settings=settings).chat("x")
    [message] = [record.getMessage() for record in caplog.records if record.name == "deepseek_client.calls"]
    facts = re.findall(r"(\w+)=", message)
    shown = [
        line
        for document in DOCUMENTS
        for line in re.findall(r"method=chat [^\n`]+", documents.text_of(document))
    ]
    assert shown
    assert [re.findall(r"(\w+)=", line) for line in shown] == [facts] * len(shown)


def test_links():
    """Each link leads to a file of this repository, and to a heading of it."""
    for document in DOCUMENTS:
        text = documents.prose_of(document)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            path, _, fragment = "".join(target).partition("#")
            if path.startswith(("http:", "https:")):
                continue
            file = (ROOT / document).parent / path if path else ROOT / document
            assert file.exists(), f"{document} links to {path}"
            if fragment:
                assert fragment in documents.anchors(str(file.resolve().relative_to(ROOT))), (
                    document,
                    fragment,
                )


def test_chinese_readme_says_the_same():
    """The Chinese README has the sections, the examples and the names of the English one, in its order."""
    english = [block[2:4] for block in blocks(README)]
    assert [block[2:4] for block in blocks(CHINESE)] == english
    levels = [[level for level, _ in documents.headings(document)] for document in (README, CHINESE)]
    assert levels[0] == levels[1]
    codes = [sorted({*codes_in(documents.prose_of(document))}) for document in (README, CHINESE)]
    assert codes[0] == codes[1]
