"""The roster: the devices that may come in, and what each proves itself by.

    fleet/roster.json       {"devices": {name: {"kind", "salt", "digest", "since", "revoked"}}}, mode 0600

A device proves itself by a token, 32 random bytes that are shown once, or by a client certificate. Of a token the file
holds SHA-256(salt, token): slow hashes are for secrets that people choose and others can guess; a token has 256 random
bits, which nobody finds by trying, however fast a try is. The salt keeps two entries from being compared. Of a
certificate it holds the SHA-256 of its DER bytes, so that a name which is added again does not let its old certificate
in again. A fleet has one kind: gRPC asks either everybody for a certificate or nobody.

The file is replaced as a whole under a lock, and read again whenever it has changed: `revoke` in another process takes
effect at a running server's next question.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from cutlayer.errors import ConfigError, Refused
from cutlayer.files import locked, write_atomically

TOKEN_BYTES, SALT_BYTES = 32, 16
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""The pattern of a device's name, which is also the name of a file and of a certificate."""

Kind = Literal["token", "certificate"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A device of the roster.

    Attributes:
      kind: what it proves itself by.
      salt: of its token, in hex; empty for a certificate.
      digest: of what it proves itself by, in hex.
      since: when it was added, ISO 8601.
      revoked: when that ended; empty while it may come in.
    """

    kind: Kind
    salt: str
    digest: str
    since: str
    revoked: str = ""


class Roster:
    """The devices that may come in.

    Args:
      folder: The fleet folder.

    Raises:
      ConfigError: It has no roster, or one that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "roster.json"
        self._read_at: tuple[int, ...] = ()
        self._entries: dict[str, Entry] = {}
        self._read()

    @classmethod
    def create(cls, folder: Path) -> Roster:
        """A roster of nobody in a fleet folder, which is made if it is not there.

        Raises:
          ConfigError: The folder has one.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "roster.json"
        if path.exists():
            raise ConfigError(f"fleet: expected a folder without a roster, got {path}. Name another folder.")
        write_atomically(path, _as_json({}), private=True)
        return cls(folder)

    def add(self, name: str, *, when: datetime) -> str:
        """Lets a device in by a token.

        Returns:
          The token. It is nowhere else: who loses it revokes the device and adds it again.

        Raises:
          ConfigError: No name for a device, there is a device of this name, or the others have certificates.
        """
        token, salt = secrets.token_urlsafe(TOKEN_BYTES), secrets.token_hex(SALT_BYTES)
        self._put(name, Entry("token", salt, _digest(salt, token), _iso(when)))
        return token

    def add_certificate(self, name: str, fingerprint: str, *, when: datetime) -> None:
        """Lets a device in by a certificate of this SHA-256 fingerprint in hex. Raises as `add`."""
        self._put(name, Entry("certificate", "", fingerprint, _iso(when)))

    def revoke(self, name: str, *, when: datetime) -> None:
        """Lets a device in no more; one that is there leaves at the server's next question.

        Raises:
          ConfigError: Nobody of this name may come in.
        """
        with self._changing():
            entry = self._entries.get(name)
            if entry is None or entry.revoked:
                here = ", ".join(sorted(n for n, e in self._entries.items() if not e.revoked)) or "nobody"
                raise ConfigError(
                    f"fleet: expected a device that may come in ({here}), got {reprlib.repr(name)}. Change the name."
                )
            self._entries[name] = replace(entry, revoked=_iso(when))

    def entries(self) -> Mapping[str, Entry]:
        """Every device, by name, those that are revoked included."""
        self._read()
        return dict(sorted(self._entries.items()))

    @property
    def kind(self) -> Kind | None:
        """The kind of proof that this fleet's devices have; None while there are no devices."""
        return next((entry.kind for entry in self.entries().values() if not entry.revoked), None)

    def names(self) -> list[str]:
        """Those who may come in."""
        return [name for name, entry in self.entries().items() if not entry.revoked]

    def admit(self, name: str, token: str) -> str:
        """Checks what a device says to prove itself.

        Returns:
          The digest that it has proved, for `standing`.

        Raises:
          Refused: unknown-device, revoked, wrong-token, or roster-unreadable.
        """
        entry = self._current(name)
        digest = _digest(entry.salt, token) if entry.kind == "token" else ""
        if not hmac.compare_digest(digest, entry.digest):
            raise Refused(
                "wrong-token",
                f"device {name}: expected its token, got another. `cutlayer fleet add` makes one.",
            )
        return digest

    def standing(self, name: str, digest: str) -> None:
        """Whether a device that proved itself by this digest may (still) be here; a certificate's is its fingerprint.

        Raises:
          Refused: unknown-device, revoked, wrong-certificate (or replaced, where it came by another token), or
            roster-unreadable.
        """
        entry = self._current(name)
        if not hmac.compare_digest(digest, entry.digest):
            raise Refused(
                "wrong-certificate" if entry.kind == "certificate" else "replaced",
                f"device {name}: expected the {entry.kind} of the roster, got an earlier one or another's. "
                "Copy the new one to the device.",
            )

    def _current(self, name: str) -> Entry:
        try:
            self._read()
        except ConfigError as error:
            raise Refused("roster-unreadable", str(error)) from error
        entry = self._entries.get(name)
        if entry is None:
            raise Refused(
                "unknown-device",
                f"device {reprlib.repr(name)}: expected a device of the roster, got another. "
                "Run `cutlayer fleet add` on the server.",
            )
        if entry.revoked:
            raise Refused("revoked", f"device {name}: expected a device that may come in, got one that was revoked.")
        return entry

    def _put(self, name: str, entry: Entry) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(
                "fleet: expected a device's name of 1 to 64 letters, digits, `.`, `_` and `-`, not beginning with a "
                f"dot, got {reprlib.repr(name)}. Change it."
            )
        with self._changing():
            if name in self._entries and not self._entries[name].revoked:
                raise ConfigError(f"fleet: expected a new device, got {name}, which is there. Revoke it first.")
            others = next((e.kind for e in self._entries.values() if not e.revoked), entry.kind)
            if others != entry.kind:
                raise ConfigError(
                    f"fleet: expected a device with a {others}, as all others have, got a {entry.kind} for {name}. "
                    "Revoke the others first, or give all of them the same."
                )
            self._entries[name] = entry

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Writes what its block changes, unless something is raised; meanwhile no other process changes anything."""
        with closing(locked(self._path.parent, wait=True)):
            self._read()
            yield
            write_atomically(self._path, _as_json(self._entries), private=True)

    def _read(self) -> None:
        """Reads the file if it is another than the one that was read: to look takes no descriptor, of which there may
        be none left."""
        try:
            if _when(self._path.stat()) == self._read_at:
                return
            with open(self._path, encoding="utf-8") as file:
                read_at = _when(os.fstat(file.fileno()))
                content = json.load(file)
            self._entries = {name: Entry(**row) for name, row in content["devices"].items()}
        except FileNotFoundError:
            raise ConfigError(
                f"fleet: expected a roster, got no file {self._path}. Make one with `cutlayer fleet init`."
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{self._path}: expected a roster, got {type(error).__name__}. Restore the file, or begin a new one "
                "with `cutlayer fleet init`."
            ) from error
        self._read_at = read_at


def _when(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digest(salt: str, token: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + token.encode()).hexdigest()


def _iso(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _as_json(entries: Mapping[str, Entry]) -> str:
    return json.dumps({"devices": {name: asdict(entry) for name, entry in sorted(entries.items())}}, indent=1) + "\n"
