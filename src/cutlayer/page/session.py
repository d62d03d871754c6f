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
from pathlib import Path

from cutlayer.config import RunConfig
from cutlayer.errors import ConfigError
from cutlayer.page.digest import Digest, about
from cutlayer.page.live import Live
from cutlayer.transport.address import joined, parted
from cutlayer.transport.certificates import names_in
from cutlayer.transport.exposure import is_loopback

TOKEN = "CUTLAYER_PAGE_TOKEN"
"""In the environment: a token that stays the same when the run goes on in another process."""
TOKEN_BYTES, SHORTEST = 32, 32
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7072
HERE = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})


@contextmanager
def page_beside(
    config: RunConfig, address: str, tls: Path | None, said: Callable[[str], None], *, simulated: bool
) -> Iterator[Live]:
    """Serves the page of a run while it goes.

    Args:
      config: Of the run.
      address: HOST:PORT; empty for this machine's port 7072 or, where that is taken, a free one.
      tls: A folder with server.crt and server.key.
      said: Told the address to open.
      simulated: Whether the run's time is that of a modelled fleet.

    Raises:
      ConfigError: It cannot be there, or others could reach it without TLS.
    """
    try:
        from cutlayer.page.serving import PageServer, Secured
    except ImportError as error:
        raise ConfigError(
            f"--page: expected the packages starlette and uvicorn, got none ({error}). Install them with: "
            "pip install 'cutlayer[page]'"
        ) from error
    host, port = parted(address, "--page") if address else (DEFAULT_HOST, DEFAULT_PORT)
    names: Set[str] = HERE | {host}
    if is_loopback(host):
        secured = None
    else:
        certificate, key = _files(tls, host)
        secured, names = Secured(certificate, key, _token()), _names(certificate, host)
    listening = _listening(host, port, anew=not address)
    live = Live(
        Digest(config.model_dump(mode="json"), about(config, None), Path(config.out), simulated=simulated),
        time.monotonic,
    )
    server = PageServer(live, listening, names, secured)
    port = listening.getsockname()[1]
    shown = host if host not in EVERYWHERE else min(names - EVERYWHERE, default=host)
    said(f"page: http{'s' if secured else ''}://{joined(shown, port)}/{f'?token={secured.token}' if secured else ''}")
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
    """By which the page may be asked for: those in the certificate, and the one that is listened on."""
    try:
        names = names_in(certificate)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"--page-tls: expected in {certificate} a certificate that names the server, got none ({error}). "
            "`cutlayer fleet init --host NAME` makes one."
        ) from error
    return {*names, host} - EVERYWHERE


def _token() -> str:
    token = os.environ.get(TOKEN, "")
    if not token:
        return secrets.token_urlsafe(TOKEN_BYTES)
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
