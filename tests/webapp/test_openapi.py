"""The document that describes the HTTP contract, held against the application and the errors."""

import re
from dataclasses import replace

import pytest

import deepseek_client
from deepseek_client import DeepSeekError
from webapp.app import create_app

TOKEN = "s3cret-token"
PATH = "/api/openapi.json"


@pytest.fixture
def document(settings):
    """The document as it is served."""
    return create_app(settings).test_client().get(PATH).get_json()


def operations(document):
    """Each operation by its method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_has_each_route_and_no_other(settings, document):
    """The document's methods and paths are those of the application."""
    known = {
        (method, re.sub("<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule.rule))
        for rule in create_app(settings).url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert set(operations(document)) == known


def test_each_error_has_its_status(document):
    """The code of each error stands in the answer with the error's status, which each route with a body can give."""
    for name in deepseek_client.__all__:
        error = getattr(deepseek_client, name)
        if not (isinstance(error, type) and issubclass(error, DeepSeekError)) or error is DeepSeekError:
            continue
        answer = document["components"]["responses"][str(error.http_status)]
        _, narrow = answer["content"]["application/json"]["schema"]["allOf"]
        assert error.code in narrow["properties"]["code"]["enum"]
        for operation in operations(document).values():
            if "requestBody" in operation and "202" not in operation["responses"]:
                assert str(error.http_status) in operation["responses"]


def test_references_lead_somewhere(document):
    """Each component that is referred to exists, and each that exists is referred to."""
    targets = set(re.findall("'#/components/([^']+)'", str(document)))
    components = {
        f"{kind}/{name}"
        for kind, named in document["components"].items()
        for name in named
        if kind != "securitySchemes"
    }
    assert targets == components


def test_limits_are_those_of_the_settings(settings):
    """LLM_PROMPT_LIMIT and LLM_BATCH_LIMIT are in the document as they are set."""
    client = create_app(replace(settings, prompt_limit=77, batch_limit=3)).test_client()
    schemas = client.get(PATH).get_json()["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["prompt"]["maxLength"] == 77
    assert schemas["BatchRequest"]["properties"]["requests"]["maxItems"] == 3


def test_token(settings):
    """The document is open to everybody, says which routes want the token, and does not show it."""
    answer = create_app(replace(settings, web_api_token=TOKEN)).test_client().get(PATH)
    assert answer.status_code == 200
    assert TOKEN not in answer.text
    assert "sk-test" not in answer.text
    guarded = {
        path for (_, path), operation in operations(answer.get_json()).items() if "security" in operation
    }
    assert guarded == {path for path in answer.get_json()["paths"] if path.startswith("/api/llm/")}


def test_without_a_token_none_is_wanted(document):
    """Without WEB_API_TOKEN the document has no security scheme."""
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for operation in operations(document).values())


@pytest.mark.parametrize(
    "blank", ["\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\ufeff", "\u200b", "。"], ids=ascii
)
def test_blank_prompt(settings, document, blank):
    """What the document calls a blank prompt is what the server calls one."""
    pattern = document["components"]["schemas"]["ChatRequest"]["properties"]["prompt"]["pattern"]
    answer = create_app(settings).test_client().post("/api/llm/chat", json={"prompt": blank})
    assert (answer.status_code == 400) is (re.search(pattern, blank) is None)
