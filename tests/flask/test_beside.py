"""The extension disturbs nothing that the application already has."""

import flask_restful
import pytest
from flask import Flask, g
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
from support.clients import TheirClient

from deepseek_client import DeepSeekError, Overloaded
from deepseek_client.flask import DeepSeek, metrics_view


class TestProblems:
    """A DeepSeekError that leaves a view."""

    @staticmethod
    def refuse():
        raise Overloaded("All are busy.", retry_after_s=7)

    @pytest.mark.parametrize("comes", ["before", "after"])
    def test_resource(self, llm, comes):
        """It is answered under Flask-RESTful, which replaces Flask's error handling, whichever came first."""
        app = Flask("theirs")
        if comes == "after":
            llm.init_app(app)
        api = flask_restful.Api(app)
        api.add_resource(
            type("Chat", (flask_restful.Resource,), {"get": lambda self: TestProblems.refuse()}), "/chat"
        )
        api.add_resource(type("Bad", (flask_restful.Resource,), {"get": lambda self: 1 / 0}), "/bad")
        if comes == "before":
            llm.init_app(app)
        answer = app.test_client().get("/chat")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
        assert answer.get_json() == {"error": "All are busy.", "code": "overloaded", "text": ""}
        assert app.test_client().get("/bad").get_json() == {"message": "Internal Server Error"}

    @pytest.mark.parametrize("comes", ["before", "after"])
    def test_own_handler(self, llm, comes):
        """A handler that the application has for DeepSeekError wins, whichever was registered first."""
        app = Flask("theirs")

        def own(error):
            return f"theirs: {error.code}", 418

        if comes == "after":
            llm.init_app(app)
        app.register_error_handler(DeepSeekError, own)
        if comes == "before":
            llm.init_app(app)
        app.add_url_rule("/", view_func=self.refuse)
        answer = app.test_client().get("/")
        assert (answer.status_code, answer.text) == (418, "theirs: overloaded")

    def test_flasks_own_refusals(self, app):
        """What is none of ours is answered as before."""
        assert app.test_client().get("/nothing").content_type.startswith("text/html")


class TestMetricsPage:
    """GET /metrics."""

    def test_served(self, app):
        """It is there without a route, for GET and HEAD alone, and counts as itself."""
        client = app.test_client()
        assert "deepseek_requests_total" in client.get("/metrics").text
        assert 'route="/metrics"' in client.get("/metrics").text
        assert (client.head("/metrics").status_code, client.post("/metrics").status_code) == (200, 404)

    @pytest.mark.parametrize("rule", ["/metrics", "/metrics/"])
    @pytest.mark.parametrize("comes", ["before", "after"])
    def test_own_route(self, llm, rule, comes):
        """A route of the application's own wins, whichever was registered first."""
        app = Flask("theirs")
        if comes == "after":
            llm.init_app(app)
        app.add_url_rule(rule, view_func=lambda: "theirs")
        if comes == "before":
            llm.init_app(app)
        assert app.test_client().get("/metrics", follow_redirects=True).text == "theirs"

    def test_exporter(self, app):
        """prometheus-flask-exporter keeps its page and its metrics."""
        PrometheusMetrics(app, registry=CollectorRegistry())
        text = app.test_client().get("/metrics").text
        assert "flask_http_request" in text or "flask_exporter_info" in text
        assert "deepseek_" not in text

    def test_catch_all(self, app):
        """A route that catches every path does not hide it."""
        app.add_url_rule("/<path:path>", view_func=lambda path: "caught")
        assert "deepseek_requests_total" in app.test_client().get("/metrics").text
        assert app.test_client().get("/other").text == "caught"

    def test_guarded(self, app):
        """What the application's own before_request refuses is refused here, too, although it came later."""
        app.before_request(lambda: ("who are you?", 401))
        assert app.test_client().get("/metrics").status_code == 401

    def test_other_path(self, llm):
        """The path is a choice; None serves none, and an own route may show the same."""
        app, none = Flask("theirs"), Flask("none")
        DeepSeek(app, client=TheirClient(), metrics_path="/internal/metrics")
        assert "deepseek_" in app.test_client().get("/internal/metrics").text
        DeepSeek(none, client=TheirClient(), metrics_path=None)
        none.add_url_rule("/mine", view_func=metrics_view)
        assert none.test_client().get("/metrics").status_code == 404
        assert "deepseek_" in none.test_client().get("/mine").text


class TestRequestIds:
    """X-Request-ID beside what the application has."""

    @pytest.mark.parametrize("comes", ["before", "after"])
    def test_own_header(self, llm, comes):
        """An application that sets the header itself keeps its own, whichever was registered first."""
        app = Flask("theirs")
        if comes == "after":
            llm.init_app(app)

        @app.after_request
        def own(response):
            response.headers["X-Request-ID"] = "theirs"
            return response

        if comes == "before":
            llm.init_app(app)
        assert app.test_client().get("/").headers.getlist("X-Request-ID") == ["theirs"]

    def test_refused_before_us(self, app):
        """A before_request of the application that answers a request by itself changes nothing."""
        app.before_request(lambda: ("stop", 403))
        answer = app.test_client().get("/", headers={"X-Request-ID": "r-1"})
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (403, "r-1")

    def test_own_g(self, app):
        """flask.g is the application's."""
        app.before_request(lambda: setattr(g, "request_id", "theirs"))
        app.add_url_rule("/", view_func=lambda: sorted(name for name in vars(g) if not name.startswith("_")))
        answer = app.test_client().get("/")
        assert answer.get_json() == ["request_id"]
        assert answer.headers["X-Request-ID"] != "theirs"
