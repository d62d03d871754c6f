"""Where no hub can be reached its client is told to do without one, within seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from unittest import mock

import pytest
from huggingface_hub import constants

from cutlayer import reading
from cutlayer.reading import look_for_hub, reachable


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with mock.patch.dict(os.environ):
        os.environ.pop("HF_HUB_OFFLINE", None)
        look_for_hub.cache_clear()
        yield
    look_for_hub.cache_clear()


@pytest.fixture
def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as once:
        return int(once.getsockname()[1])


def test_a_hub_that_is_not_there(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed}")
    look_for_hub()
    assert constants.HF_HUB_OFFLINE is True
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_hub_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        look_for_hub()
    assert constants.HF_HUB_OFFLINE is False


def test_behind_a_proxy_nobody_knows(closed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed}")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    look_for_hub()
    assert constants.HF_HUB_OFFLINE is False


def test_a_name_that_takes_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = mock.Mock(side_effect=lambda *_words: mock.DEFAULT)
    monkeypatch.setattr(reading.socket, "create_connection", held)
    monkeypatch.setattr(reading, "Thread", lambda **_words: mock.Mock())
    assert not reachable("a-name", 443, 0.0)
