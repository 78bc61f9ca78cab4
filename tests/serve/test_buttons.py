"""What the page's buttons ask for: programs run and values compared, by the server, safely."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra pocketlm[serve]")
pytest.importorskip("uvicorn", reason="needs the extra pocketlm[serve]")

from pocketlm.commands.serve import buttons
from pocketlm.serve.buttons import MOST_CHARS, Buttons
from pocketlm.serve.http_server import ServeConfig
from tests.serve.running import Running, running
from tests.serve.scripted import scripted_checkpoint
from tests.serve.spoken_backend import SpokenBackend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_checkpoint(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Running]:
    with running(folder, SpokenBackend({}), ServeConfig(port=0), buttons(alone=True)) as server:
        yield server


def test_a_program_is_run_in_the_sandbox_and_what_it_printed_comes_back(served: Running) -> None:
    status, said = served.ask("/api/run", {"code": "print(6 * 7)"})
    assert (status, said["stdout"], said["stderr"], said["ended"]) == (200, "42\n", "", "")
    _, said = served.ask("/api/run", {"code": "open('/etc/passwd').read()"})
    assert said["stdout"] == "" and said["ended"]
    _, said = served.ask("/api/run", {"code": "raise ValueError('no')"})
    assert "ValueError: no" in said["stderr"] and said["ended"].startswith("status 1")


def test_two_texts_are_one_value_or_not(served: Running) -> None:
    for answer, expected, equal in (
        ("\\frac{1}{2}", "0.5", True),
        ("5", "x = 5", True),
        ("5", "6", False),
    ):
        asked = {"answer": answer, "expected": expected}
        assert served.ask("/api/check", asked) == (200, {"equal": equal}), asked


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/api/run", b"{", "no JSON"),
        ("/api/run", [], "must be an object with code"),
        ("/api/run", {}, "code must be a text"),
        ("/api/run", {"code": "x" * (MOST_CHARS + 1)}, "at most 100,000 characters"),
        ("/api/check", {"answer": "5"}, "expected must be a text"),
    ],
)
def test_a_wrong_request_is_a_sentence(served: Running, path: str, body: object, says: str) -> None:
    headers = {"Content-Type": "application/json"}
    status, said = served.ask(path, body, headers=headers)
    assert status == 400
    assert says in said["error"]["message"]


def test_a_page_of_another_origin_runs_nothing_here(served: Running) -> None:
    status, _ = served.ask(
        "/api/run", {"code": "print(1)"}, headers={"Origin": "http://evil.example"}
    )
    assert status == 403
    status, _ = served.ask(
        "/api/run", b'{"code": "print(1)"}', headers={"Content-Type": "text/plain"}
    )
    assert status == 415


def test_without_a_function_there_is_no_button(folder: Path) -> None:
    open_to_all = buttons(alone=False)
    with running(folder, SpokenBackend({}), ServeConfig(port=0), open_to_all) as server:
        assert server.ask("/api/model")[1]["run"] is False
        assert server.ask("/api/model")[1]["check"] is True
        assert server.ask("/api/run", {"code": "print(1)"})[0] == 404


def test_one_program_at_a_time_and_a_fault_is_a_sentence(folder: Path) -> None:
    asked, finish = threading.Event(), threading.Event()

    def slow(code: str) -> dict[str, object]:
        asked.set()
        finish.wait(30)
        raise RuntimeError("no sandbox holds here")

    answers: list[tuple[int, object]] = []
    with running(folder, SpokenBackend({}), ServeConfig(port=0), Buttons(run=slow)) as server:
        first = threading.Thread(
            target=lambda: answers.append(server.ask("/api/run", {"code": "1"}))
        )
        first.start()
        assert asked.wait(30)
        status, said = server.ask("/api/run", {"code": "2"})
        assert (status, "something else is running" in said["error"]["message"]) == (503, True)
        finish.set()
        first.join()
    ((status, said),) = answers
    assert status == 500
    assert said == {
        "error": {
            "message": "no sandbox holds here",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }


def test_the_page_is_served_with_a_policy_that_lets_nothing_else_in(served: Running) -> None:
    with served.asked("/") as response:
        policy, page = response.getheader("content-security-policy"), response.read().decode()
    assert policy is not None
    assert "script-src 'self'" in policy and "default-src 'none'" in policy
    for name in ("main.js", "style.css", "vendor/katex.min.js", "vendor/LICENSE-katex"):
        with served.asked(f"/{name}") as response:
            assert response.status == 200, name
    assert "http://" not in page and "https://" not in page
