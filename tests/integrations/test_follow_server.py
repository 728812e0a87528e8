"""examples/follow_server.py under a real uvicorn: a rollback reaches it, and no request fails."""

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitwright.kernels import dispatch
from bitwright.registry.add import add
from bitwright.registry.change import promote, rollback
from bitwright.registry.store import Registry, make_registry
from tests.pages import ROOT

EXAMPLE = ROOT / "examples" / "follow_server.py"
CALLERS = 4


@pytest.fixture
def registry(quantized: Callable[..., Path], tmp_path: Path) -> Registry:
    registry = make_registry(tmp_path / "registry", mlflow=None)
    for pooling in ("mean_tokens", "cls_token"):
        version = add(registry, quantized("bert", "w8a8", pooling=pooling), "m", sign=False)
        promote(registry, "m", version.number, force=True, reason="a test")
    return registry


@pytest.fixture
def port(registry: Registry) -> Iterator[int]:
    """The port of the example's server."""
    if not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))) or not dispatch.available():
        pytest.skip("needs fastapi, uvicorn and the native kernels")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = os.environ | {"REGISTRY": str(registry.root), "MODEL": "m"}
    command = [sys.executable, "-m", "uvicorn", "follow_server:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=EXAMPLE.parent, env=environment)
    try:
        deadline = time.monotonic() + 60
        while version(port) is None:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def version(port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/health")
        return int(json.loads(connection.getresponse().read())["version"])
    except OSError:
        return None
    finally:
        connection.close()


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 32


@pytest.mark.parametrize("requests", [400, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_rollback_reaches_the_server_and_no_request_fails(registry: Registry, port: int, requests: int) -> None:
    asked, answers, failed = 0, set[str](), list[object]()
    lock = threading.Lock()

    def call() -> None:
        nonlocal asked
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"texts": ["a text that is asked again and again"]})
        while asked < requests:
            try:
                connection.request("POST", "/encode", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read().decode()
                with lock:
                    asked += 1
                    answers.add(text)
                    if answer.status != 200:
                        failed.append((answer.status, text))
            except OSError as error:
                failed.append(error)
                break
        connection.close()

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    while asked < requests // 4:
        time.sleep(0.005)
    assert version(port) == 2
    begun = time.monotonic()
    rollback(registry, "m")
    while version(port) != 1:
        assert time.monotonic() < begun + 20
    seconds = time.monotonic() - begun
    for caller in callers:
        caller.join()
    assert failed == []
    assert asked >= requests
    assert len(answers) == 2  # of the one version and of the other, and nothing between
    if requests > 1000:
        assert seconds <= 2, seconds
