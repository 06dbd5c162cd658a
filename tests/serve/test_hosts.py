"""Which names the service and its page answer to, asked over a real connection."""

import contextlib
import http.client
import json

import pytest

from siren.serve import hosts
from siren.serve.engine import Engine
from tests.serve.conftest import LIMITS
from tests.serve.test_app import Running


def ask(address, method="GET", path="/healthz", body=None, **headers):
    """As a client that says any Host it likes."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host=True)
        if body is not None:
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def test_the_service_answers_to_no_name_that_it_does_not_know(bundle, capsys):
    running = Running(Engine(bundle, LIMITS), ["Sounds.example.org"])
    sound = json.dumps({"prompt": "a dog barks"}).encode()
    for host in ("localhost:1", "127.0.0.1", "192.168.1.5:7860", "[::1]:7860", "sounds.example.org:8443"):
        assert ask(running.address, host=host)[0] == 200
    for _ in range(2):
        status, text, headers = ask(running.address, "POST", "/generate", sound, host="evil.example:7860")
        assert (status, headers["content-type"]) == (421, "application/json")
        told = json.loads(text)
        assert "'evil.example:7860'" in told["error"]
        assert told["remedy"].endswith("start it with --allow-host evil.example")
    for origin, status in (
        ("https://sounds.example.org:8443", 200),
        ("http://localhost:1", 200),
        ("http://localhost:2", 403),
        ("https://evil.example", 403),
        ("http://[", 403),
        ("null", 403),
    ):
        assert ask(running.address, "POST", "/generate", sound, host="localhost:1", origin=origin)[0] == status
    assert running.metric('siren_requests_total{code="421",path="/generate"}') == 2
    assert running.metric("siren_frames_total") == 2 * 20
    running.stop()
    assert capsys.readouterr().err.count("--allow-host evil.example") == 2  # of the Host and of the origin, once each


def test_the_name_that_a_server_listens_on_is_its_own():
    assert hosts.names("127.0.0.1", None) == hosts.names("::", []) == hosts.names("0.0.0.0", ()) == []
    assert hosts.names("box.local", ["sounds.example.org"]) == ["sounds.example.org", "box.local"]
    for wrong in ("sounds.example.org:8443", "https://sounds.example.org", "", "*"):
        with pytest.raises(ValueError, match=r"it takes a name such as sounds\.example\.org, without a port"):
            hosts.names("127.0.0.1", [wrong])
