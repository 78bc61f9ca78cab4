"""The command `pocketlm serve`, as a person starts and stops it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("starlette", reason="needs the extra pocketlm[serve]")
pytest.importorskip("uvicorn", reason="needs the extra pocketlm[serve]")

from pocketlm.cli import app
from tests.serve.running import SECONDS, Running
from tests.serve.scripted import CONTENT, scripted_checkpoint


def test_it_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    folder = scripted_checkpoint(tmp_path / "model")
    command = [sys.executable, "-m", "pocketlm.cli", "serve", str(folder), "--port", "0"]
    options = ["--threads", "1", "--context", "100", "--slots", "2", "--max-tokens", "3"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        assert "checkpoint, 100 tokens of context, 2 answered side by side" in lines[0]
        match = re.match(r"http://127\.0\.0\.1:(\d+) is a page to talk on", lines[1])
        assert match, lines
        served = Running(port=int(match[1]), backend=None)  # type: ignore[arg-type]
        body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
        answer = served.ask("/v1/chat/completions", body)[1]
        assert answer["usage"]["completion_tokens"] == 3
        answer = served.ask("/v1/chat/completions", {**body, "max_tokens": 50})[1]
        assert answer["choices"][0]["message"]["content"] == CONTENT
        body = {"prompt": "L", "stream": True, "max_tokens": 99}
        with served.asked("/v1/completions", body) as response:
            response.readline()
            process.send_signal(signal.SIGINT)  # while an answer is being made
            assert process.wait(SECONDS) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_a_mistake_is_one_message(tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments, message in (
        ([str(tmp_path / "none")], "no such model"),
        ([str(tmp_path)], "no checkpoint"),
    ):
        result = runner.invoke(app, ["serve", *arguments])
        assert result.exit_code == 2 and message in result.output.replace("\n", " ")
    folder = scripted_checkpoint(tmp_path / "model")
    for option, value, message in (
        ("--temperature", "-1", "temperature -1.0 is below 0"),
        ("--queue", "-1", "queue -1 is below 0"),
        ("--slots", "0", "slots 0 is below 1"),
        ("--context", "5000", "is more than the 4096 tokens"),
        ("--allow-origin", "*", "is no origin"),
    ):
        result = runner.invoke(app, ["serve", str(folder), option, value])
        assert result.exit_code == 2 and message in result.output.replace("\n", " ")
