"""The page beside a run, from an address that a person gave: opened before the run, closed when it is over.

On this machine alone it is there without more. Where others can connect it needs TLS, by the certificate of a folder
such as a fleet's, and a token of its own, which lets read the page and do nothing else.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from cutlayer.config import RunConfig
from cutlayer.errors import ConfigError
from cutlayer.page.asked import PageAsked
from cutlayer.page.digest import Digest, about
from cutlayer.page.live import Live, Watched
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.transport.address import joined, parted
from cutlayer.transport.certificates import names_in
from cutlayer.transport.exposure import is_loopback

TOKEN = "CUTLAYER_PAGE_TOKEN"
"""The environment variable of the page's token, for where none can be shown, and to keep it when the run goes on."""
TOKEN_BYTES, SHORTEST = 32, 32
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7072
HERE = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})


@contextmanager
def beside(
    display: FleetDisplay,
    config: RunConfig,
    page: PageAsked | None,
    said: Callable[[str], None],
    *,
    shows_token: bool,
    simulated: bool,
) -> Iterator[FleetDisplay]:
    """A display, open, with the page beside it that somebody has asked for.

    Args:
      display: Told of the run.
      config: Of the run.
      page: None for no page.
      said: Told the address to open.
      shows_token: Whether `said` may be told the page's token, where it has one: what it is told ends in no log.
      simulated: Whether the run's time is that of a modelled fleet.

    Raises:
      ConfigError: The page cannot be there, or others could reach it without TLS.
    """
    if page is None:
        with display:
            yield display
        return
    with (
        page_beside(config, page, said, shows_token=shows_token, simulated=simulated) as live,
        Watched(display, live) as watched,
    ):
        yield watched


def check_page(page: PageAsked | None, *, shows_token: bool) -> None:
    """Looks at all that can be told of a page before there is one, and before torch is imported.

    Raises:
      ConfigError: It cannot be there, or others could reach it without TLS.
    """
    if page is None:
        return
    missing = [package for package in ("starlette", "uvicorn") if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--page: expected the packages starlette and uvicorn, got no {missing[0]}. Install them with: "
            "pip install 'cutlayer[page]'"
        )
    host, _ = _address(page)
    if not is_loopback(host):
        _names(_files(page.tls, host)[0], host)
        _token(shows_token=shows_token)


@contextmanager
def page_beside(
    config: RunConfig, page: PageAsked, said: Callable[[str], None], *, shows_token: bool, simulated: bool
) -> Iterator[Live]:
    """Serves the page of a run while it goes. Arguments and errors are those of `beside`."""
    check_page(page, shows_token=shows_token)
    from cutlayer.page.serving import PageServer, Secured

    host, port = _address(page)
    names: Set[str] = HERE | {host}
    if is_loopback(host):
        secured = None
    else:
        certificate, key = _files(page.tls, host)
        secured, names = Secured(certificate, key, _token(shows_token=shows_token)), _names(certificate, host)
    listening = _listening(host, port, anew=not page.address)
    live = Live(
        Digest(config.model_dump(mode="json"), about(config, None), Path(config.out), simulated=simulated),
        time.monotonic,
    )
    server = PageServer(live, listening, names, secured)
    port = listening.getsockname()[1]
    shown = host if host not in EVERYWHERE else min(names - EVERYWHERE, default=host)
    where = f"page: http{'s' if secured else ''}://{joined(shown, port)}/"
    if secured is None:
        said(where)
    else:
        said(f"{where} with ?token= and the token of {TOKEN}" if _chosen() else f"{where}?token={secured.token}")
    server.start()
    try:
        yield live
    except BaseException as error:
        live.end(" ".join(str(error).split()) or type(error).__name__)
        raise
    else:
        live.end("")
    finally:
        server.close()


def _address(page: PageAsked) -> tuple[str, int]:
    return parted(page.address, "--page") if page.address else (DEFAULT_HOST, DEFAULT_PORT)


def _files(tls: Path | None, host: str) -> tuple[Path, Path]:
    if tls is None:
        raise ConfigError(
            f"--page: expected TLS where others can connect, got {host} without: anybody on the way reads the page and "
            "its token. Name a folder with server.crt and server.key, such as a fleet's (--page-tls), or use 127.0.0.1."
        )
    files = tls / "server.crt", tls / "server.key"
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"--page-tls: expected a folder with server.crt and server.key, got {tls} without {file.name}. "
                "`cutlayer fleet init` makes one."
            )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    except OSError as error:  # `ssl.SSLError` too
        raise ConfigError(
            f"--page-tls: expected in {tls} a certificate and its key, got {error}. `cutlayer fleet init` makes a pair."
        ) from error
    return files


def _names(certificate: Path, host: str) -> Set[str]:
    """The names by which the page may be asked for: those in the certificate, and the one that is listened on."""
    try:
        names = names_in(certificate)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"--page-tls: expected in {certificate} a certificate that names the server, got none ({error}). "
            "`cutlayer fleet init --host NAME` makes one."
        ) from error
    return {*names, host} - EVERYWHERE


def _chosen() -> str:
    """The token that the environment says; empty where it says none."""
    return os.environ.get(TOKEN, "")


def _token(*, shows_token: bool) -> str:
    token = _chosen()
    if not token and shows_token:
        return secrets.token_urlsafe(TOKEN_BYTES)
    if not token:
        raise ConfigError(
            f"{TOKEN}: expected a token for the page, as others can connect and what is printed goes to no terminal "
            "but into a log, got none. Set it to 32 random bytes as text (openssl rand -hex 32)."
        )
    if len(token) < SHORTEST or not all(letter.isalnum() or letter in "-_" for letter in token):
        raise ConfigError(
            f"{TOKEN}: expected at least {SHORTEST} letters, digits, - or _ that nobody can guess, got {len(token)} "
            "characters. Take 32 random bytes, or leave it out: then one is made and printed."
        )
    return token


def _listening(host: str, port: int, *, anew: bool) -> socket.socket:
    """A socket at the address; `anew` says that any port will do where this one is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if anew:
            return socket.create_server((host, 0), family=family)
        raise ConfigError(
            f"--page: expected an address on which this machine can listen, got {joined(host, port)} "
            f"({error.strerror}). Use another, or none: 127.0.0.1 and a port that is free."
        ) from error
