"""A web page that a browser shows on the sandbox's machine cannot change what the sandbox does."""

import pytest
from support.patience import GIVE_UP_S

SCRIPT = '{"replies": [{"fault": "hang"}]}'
REFUSED = {
    "cross_site": ({"Sec-Fetch-Site": "cross-site"}, 403),
    "same_site": ({"Sec-Fetch-Site": "same-site"}, 403),
    "foreign_origin": ({"Origin": "https://elsewhere.example"}, 403),
    "null_origin": ({"Origin": "null"}, 403),
    "other_port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "rebound_name": ({"Host": "elsewhere.example"}, 403),
    "rebound_name_with_its_origin": (
        {"Host": "elsewhere.example:80", "Origin": "http://elsewhere.example:80", "Sec-Fetch-Site": "same-origin"},
        403,
    ),
    "broken_host": ({"Host": "[::1"}, 403),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "upload": ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    "plain_text": ({"Content-Type": "text/plain;charset=UTF-8"}, 415),
}  # fmt: skip
ALLOWED = {
    "no_browser": {},
    "json": {"Content-Type": "application/json"},
    "localhost": {"Host": "localhost:9"},
    "ipv6": {"Host": "[::1]:9"},
    "typed": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize(("headers", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/sandbox/script"), ("DELETE", "/sandbox/script"), ("POST", "/sandbox/reset")],
)
def test_refused(sandbox, http_, headers, status, method, path):
    """What a page makes a browser send is refused, and changes nothing."""
    sandbox.script([{"fault": "ok"}])
    answer = http_.request(method, sandbox.url + path, data=SCRIPT, headers=headers, timeout=GIVE_UP_S)
    assert answer.status_code == status
    assert sandbox.stats()["scripted"] == 1


@pytest.mark.parametrize("path", ["/sandbox/stats", "/sandbox/script"])
def test_rebound_name_reads_nothing(sandbox, http_, path):
    """A page whose name was made to lead to this machine does not read what was asked here."""
    answer = http_.get(sandbox.url + path, headers={"Host": "elsewhere.example"}, timeout=GIVE_UP_S)
    assert answer.status_code == 403


@pytest.mark.parametrize("headers", ALLOWED.values(), ids=ALLOWED)
def test_allowed(sandbox, http_, headers):
    """A program may script it, also under the other names of this machine."""
    answer = http_.post(sandbox.url + "/sandbox/script", data=SCRIPT, headers=headers, timeout=GIVE_UP_S)
    assert answer.json() == {"scripted": 1}
