"""A page beside a run: who may read it, what is sent to whoever watches, and what a browser makes of that."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from browser import Browser
from cutlayer.page.live import Live
from cutlayer.page.serving import PageServer, Secured, put
from cutlayer.transport.certificates import issue_server, make_authority
from made_up_runs import names
from page_ends import begun, play

TOKEN = "t" * 40
HERE = {"localhost", "127.0.0.1"}


@contextmanager
def served(live: Live, secured: Secured | None = None, every_seconds: float = 0.02) -> Iterator[int]:
    """The page, and the port at which it is."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = PageServer(live, listening, HERE, secured, every_seconds=every_seconds)
    server.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.close()


def ask(port: int, path: str = "/", *, method: str = "GET", tls: Path | None = None, **headers: str) -> Any:
    """An answer, read."""
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    else:
        context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    try:
        connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]
        return answer
    finally:
        connection.close()


@contextmanager
def watching(port: int) -> Iterator[Iterator[dict[str, Any]]]:
    """The pieces that somebody who watches is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")

    def pieces() -> Iterator[dict[str, Any]]:
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    try:
        yield pieces()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a fleet's server."""
    folder = tmp_path_factory.mktemp("fleet")
    make_authority(folder, datetime.now(UTC))
    issue_server(folder, ["127.0.0.1", "localhost"], datetime.now(UTC))
    return folder


# ------------------------------------------------------------------ who may read


def test_it_answers_by_its_own_names_only(tmp_path: Path) -> None:
    """A page of another site may point its own name at this machine (DNS rebinding): it is given nothing."""
    live, _, _ = begun(tmp_path / "run")
    with served(live) as port:
        for path in ("/", "/events", "/history?device=pi-0"):
            for host in (
                "evil.example",
                f"evil.example:{port}",
                "127.0.0.1.evil.example",
                "",
                "localhost@evil.example",
            ):
                refused = ask(port, path, Host=host)
                assert refused.status in (400, 421), host
                assert "pi-0" not in refused.text
        assert ask(port, Host=f"localhost:{port}").status == 200
        assert ask(port, Host="LOCALHOST").status == 200


def test_it_can_only_be_read(tmp_path: Path) -> None:
    live, _, _ = begun(tmp_path / "run")
    with served(live) as port:
        for path in ("/", "/events", "/history"):
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                assert ask(port, path, method=method).status == 405
        assert ask(port, "/other").status == 404
        assert ask(port, "/../../config.yaml").status == 404


def test_answers_may_not_be_kept_framed_or_guessed_at(tmp_path: Path) -> None:
    live, _, _ = begun(tmp_path / "run")
    with served(live) as port:
        for answer in (ask(port), ask(port, "/other"), ask(port, Host="evil.example")):
            assert answer.getheader("cache-control") == "no-store"
            assert answer.getheader("content-security-policy") == "frame-ancestors 'none'"
            assert answer.getheader("x-content-type-options") == "nosniff"
            assert answer.getheader("access-control-allow-origin") is None
            assert answer.getheader("server") is None
        assert "script-src 'sha256-" in ask(port).text


def test_others_need_tls_and_the_token(tmp_path: Path, fleet: Path) -> None:
    live, _, _ = begun(tmp_path / "run")
    secured = Secured(fleet / "server.crt", fleet / "server.key", TOKEN)
    assert TOKEN not in repr(secured)
    with served(live, secured) as port:
        for path in ("/", "/events", "/history?device=pi-0", "/?token=wrong", "/?token="):
            assert ask(port, path, tls=fleet).status == 401
        assert ask(port, "/events", tls=fleet, Cookie=f"cutlayer-page-{port}={TOKEN}").status == 401
        assert ask(port, "/", tls=fleet, Authorization="Bearer wrong").status == 401
        assert ask(port, "/", tls=fleet, Cookie="=;,\x7f").status == 401
        assert ask(port, f"/?token={TOKEN}", tls=fleet, Host="evil.example").status == 421
        let_in = ask(port, f"/?token={TOKEN}", tls=fleet)
        assert (let_in.status, let_in.getheader("location")) == (303, "/")
        cookie = let_in.getheader("set-cookie")
        assert TOKEN not in cookie
        assert {"HttpOnly", "Secure", "SameSite=lax"} <= set(re.split("; ", cookie))
        assert ask(port, tls=fleet, Cookie=cookie.partition(";")[0]).status == 200
        assert ask(port, tls=fleet, Authorization=f"Bearer {TOKEN}").status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(port)  # without TLS there is nothing


# ------------------------------------------------------------------ what is sent


def test_who_watches_has_the_whole_and_then_what_changes(tmp_path: Path) -> None:
    live, folder, _ = begun(tmp_path / "run")
    with served(live) as port:
        with watching(port) as pieces:
            whole = next(pieces)
            assert whole["whole"]
            assert [one[0] for _, one in whole["rows"]] == names(3)
            play(live, folder, 0)
            piece = next(piece for piece in pieces if "numbers" in piece)
            assert piece["tiles"][0][1] == "1 of 4"
            assert "whole" not in piece
        with watching(port) as pieces:
            assert next(pieces)["numbers"] == piece["numbers"], "who comes later has the same"
        assert json.loads(ask(port, "/history?device=pi-1").text)["norm"] == [[1, 1.5]]
        assert ask(port, "/history?device=nobody").status == 404


def test_the_end_is_sent_and_connections_end(tmp_path: Path) -> None:
    live, _, _ = begun(tmp_path / "run")
    with served(live) as port, watching(port) as pieces:
        assert next(pieces)["whole"]
        live.end("somebody has stopped it")
        ended = next(piece for piece in pieces if piece.get("over"))
    assert ended["status"] == "The run was ended: somebody has stopped it"


def test_who_does_not_read_is_let_go_of() -> None:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(2)
    assert put(queue, b"x")
    assert put(queue, b"x")
    assert not put(queue, b"y")
    assert queue.get_nowait() is None
    assert queue.empty()


# ------------------------------------------------------------------ in a browser


def test_a_browser_sees_a_run_go(tmp_path: Path, browser: Browser) -> None:
    """The quick one: pieces arrive and are shown, a history is fetched, the end is told, nothing else is asked for."""
    live, folder, _ = begun(tmp_path / "run")
    with served(live) as port:
        page = browser.open(f"http://127.0.0.1:{port}/")
        page.until("document.getElementById('status').innerText === 'Round 1/4 is under way.'")
        page.until("document.getElementById('count').innerText === '3 devices'")
        assert page.value("document.querySelectorAll('svg.curves').length") == 0
        for round in range(2):
            play(live, folder, round)
            page.until(f"document.querySelector('#tiles .figure').innerText === '{round + 1} of 4'")
        page.until("document.querySelectorAll('.charts:not([hidden]) svg.curves .line').length === 3")
        page.until("document.querySelector('svg.curves .line').getBoundingClientRect().width > 50")
        page.until("document.getElementById('view').innerText === '0 s to 20 s of 20 s, rounds 1 to 2'")
        page.click("#rows tbody th button")
        page.until("document.querySelectorAll('#device svg.spark').length === 3")
        live.end("")
        page.until("document.getElementById('status').innerText.startsWith('The run has ended.')")
        place = f"http://127.0.0.1:{port}/"
        assert page.requests == [place, f"{place}events", f"{place}history?device=pi-0"]
        assert page.console == []
        page.close()
