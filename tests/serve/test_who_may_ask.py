"""Who may ask: attacks from a page in a browser, of a stranger without the key, and with bytes that
are no request. The answers come from a script.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra pocketlm[serve]")
pytest.importorskip("uvicorn", reason="needs the extra pocketlm[serve]")

from pocketlm.serve import guard
from pocketlm.serve.http_server import ServeConfig, bound, is_loopback, warning
from pocketlm.serve.open_backend import Opening, open_backend
from tests.serve.running import Running, running
from tests.serve.scripted import scripted_checkpoint

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
ELSEWHERE, KEY, MOST = "http://localhost:3000", "secret", 4000
SHOWN_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_checkpoint(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Any]:
    backend = open_backend(folder, Opening(threads=1))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def served(folder: Path, backend: Any) -> Iterator[Running]:
    config = ServeConfig(
        port=0, hosts=("box.lan",), origins=(ELSEWHERE,), max_body_bytes=MOST, name="scripted"
    )
    with running(folder, backend, config) as server:
        yield server


@pytest.fixture(scope="module")
def locked(folder: Path, backend: Any) -> Iterator[Running]:
    with running(folder, backend, ServeConfig(port=0, api_key=KEY)) as server:
        yield server


@pytest.mark.parametrize("path", ["/health", "/v1/models", CHAT, "/", "/nothing"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.7", "a@b", ""]
)
def test_a_name_that_was_made_to_resolve_here_is_refused(
    served: Running, path: str, host: str
) -> None:
    status, answer = served.ask(path, ASKED if path == CHAT else None, headers={"Host": host})
    assert status == 403 and answer["error"]["code"] == "host_refused"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8080", "box.lan"]
)
def test_the_names_of_this_machine_are_served(served: Running, host: str) -> None:
    assert served.ask("/v1/models", headers={"Host": host})[0] == 200


def test_two_hosts_or_none_are_refused(served: Running) -> None:
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    for request in (two, b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.0\r\n\r\n"):
        status = int(served.raw(request).split()[1])
        assert status in (400, 403)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost:3000.evil"]
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_a_page_of_another_origin_is_refused(served: Running, origin: str, method: str) -> None:
    with served.asked(
        CHAT if method != "GET" else "/v1/models",
        ASKED if method == "POST" else None,
        method=method,
        headers={"Origin": origin},
    ) as response:
        assert response.status == 403
        assert response.getheader("Access-Control-Allow-Origin") is None
        assert "--allow-origin" in response.read().decode()


def test_the_own_page_and_an_allowed_one_may_ask(served: Running) -> None:
    address = f"http://127.0.0.1:{served.port}"
    assert served.ask(CHAT, ASKED, headers={"Origin": address})[0] == 200
    with served.asked(CHAT, ASKED, headers={"Origin": ELSEWHERE}) as response:
        assert response.status == 200
        assert response.getheader("Access-Control-Allow-Origin") == ELSEWHERE
    with served.asked(CHAT, method="OPTIONS", headers={"Origin": ELSEWHERE}) as response:
        assert response.status == 204 and response.getheader("Vary") == "Origin"
        assert "Authorization" in (response.getheader("Access-Control-Allow-Headers") or "")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_what_a_page_can_post_without_asking_is_refused(served: Running, kind: str) -> None:
    status, answer = served.ask(CHAT, ASKED, headers={"Content-Type": kind})
    assert status == 415 and "Content-Type: application/json" in answer["error"]["message"]


def test_json_with_a_charset_is_read(served: Running) -> None:
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert served.ask(CHAT, ASKED, headers=kind)[0] == 200


def test_too_long_a_body_is_refused_whether_or_not_it_says_its_length(served: Running) -> None:
    status, answer = served.ask(CHAT, b'{"a": "' + b"x" * MOST + b'"}')
    assert status == 413 and "4,000 bytes" in answer["error"]["message"]
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunks = b"".join(b"400\r\n" + b"x" * 0x400 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    sent = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert served.raw(sent).split()[1] == b"413"


def test_a_body_that_does_not_come_is_not_waited_for(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    with served.asked(CHAT, b"{", headers={"Content-Length": "50"}) as response:
        assert response.status == 408


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"messages": NaN}', b"{} {}"),
        *(b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 3000, b"9" * 3900),
        *(b'{"temperature": 1e999}', b'{"seed": 1' + b"0" * 400 + b"}"),
        *(b'{"prompt": {}}', b'{"messages": {"role": "user"}}', b'{"messages": [[]]}'),
        b'{"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": 1}]}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": '
        b'{"messages": 1}}',
        b'{"messages": [{"role": "user", "content": "x"}], "stream_options": 3}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_malformed_body_is_a_sentence(served: Running, path: str, body: bytes) -> None:
    status, answer = served.ask(path, body)
    assert status == 400 and len(answer["error"]["message"]) > 15, answer
    assert "Traceback" not in json.dumps(answer)


@pytest.mark.parametrize(
    "data",
    [
        *(b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n"),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_are_refused_and_the_server_stays(
    served: Running, data: bytes
) -> None:
    answer = served.raw(data)
    assert not answer or answer.split()[1].startswith(b"4")
    assert served.ask("/health") == (200, {"status": "ok"})


def test_unknown_paths_and_methods_are_refused_in_json(served: Running) -> None:
    status, answer = served.ask("/v1/embeddings", {"input": "x"})
    assert status == 404 and "/v1/chat/completions" in answer["error"]["message"]
    status, answer = served.ask(CHAT)
    assert status == 405 and "does not answer GET" in answer["error"]["message"]
    assert served.ask("//v1//models")[0] == 200
    assert served.ask("/v1/models/scripted")[1]["object"] == "model"
    assert served.ask("/v1/models/other")[0] == 404


def test_every_answer_forbids_guessing_its_type(served: Running) -> None:
    for path in ("/health", "/v1/models", "/nothing", "/metrics"):
        with served.asked(path) as response:
            assert response.getheader("X-Content-Type-Options") == "nosniff"


def test_a_key_is_asked_for_where_answers_are_and_not_for_health(locked: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        for path, body in ((CHAT, ASKED), ("/v1/models", None), ("/metrics", None)):
            status, answer = locked.ask(path, body, headers=headers)
            assert status == 401 and KEY not in json.dumps(answer)
        assert locked.ask("//api/model", headers=headers)[0] == 401
    assert locked.ask("/health")[0] == 200
    assert locked.ask(CHAT, ASKED, headers=SHOWN_KEY)[0] == 200


def test_the_key_may_hold_what_a_header_holds(locked: Running) -> None:
    assert locked.ask("/v1/models", headers={"Authorization": "Bearer \xe9\xff"})[0] == 401
    with pytest.raises(ValueError, match="ASCII"):
        ServeConfig(api_key="schlüssel")


def test_an_address_that_others_reach_is_warned_of() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and not is_loopback("0.0.0.0")
    assert "NO API KEY" in warning(ServeConfig(host="0.0.0.0"))
    assert "NO API KEY" not in warning(ServeConfig(host="0.0.0.0", api_key=KEY))
    with bound(ServeConfig(port=0)) as listening:
        listening.listen()
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}.*choose another --port"):
            bound(ServeConfig(port=port))


def test_on_an_open_address_a_number_is_a_name_and_a_strange_name_is_not(
    folder: Path, backend: Any
) -> None:
    config = ServeConfig(host="0.0.0.0", port=0)
    with running(folder, backend, config) as server:
        assert server.ask("/health", headers={"Host": "192.168.1.5:8080"})[0] == 200
        assert server.ask("/health", headers={"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize(
    "options",
    [{"origins": ("*",)}, {"origins": ("localhost",)}, {"hosts": ("a:80",)}, {"port": 70000}],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).rstrip("s")):
        ServeConfig(**options)
