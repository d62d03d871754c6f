"""The roster lets in who is on it, by the right token or certificate, and nobody else, from the moment it says so."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cutlayer.errors import ConfigError, Refused
from cutlayer.gate.roster import Roster

WHEN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    Roster.create(tmp_path / "fleet")
    return tmp_path / "fleet"


def reason(error: pytest.ExceptionInfo[Refused]) -> str:
    return error.value.reason


def test_a_token_lets_its_device_in(fleet: Path) -> None:
    roster = Roster(fleet)
    token = roster.add("pi-1", when=WHEN)
    roster.standing("pi-1", roster.admit("pi-1", token))
    assert len(token) >= 43  # 32 bytes in url-safe base 64
    assert roster.names() == ["pi-1"]


@pytest.mark.parametrize("given", ["", "x", "ü" * 43])
def test_another_token_does_not(given: str, fleet: Path) -> None:
    roster = Roster(fleet)
    roster.add("pi-1", when=WHEN)
    with pytest.raises(Refused, match="expected its token") as error:
        roster.admit("pi-1", given)
    assert reason(error) == "wrong-token"


def test_a_token_is_of_one_device(fleet: Path) -> None:
    roster = Roster(fleet)
    one, other = roster.add("pi-1", when=WHEN), roster.add("pi-2", when=WHEN)
    assert one != other
    with pytest.raises(Refused):
        roster.admit("pi-2", one)


def test_a_stranger_is_unknown(fleet: Path) -> None:
    for ask in (lambda: Roster(fleet).admit("nobody\n", "x"), lambda: Roster(fleet).standing("nobody\n", "x")):
        with pytest.raises(Refused, match=r"'nobody\\n'") as error:
            ask()
        assert reason(error) == "unknown-device"


def test_revoking_in_another_process_takes_effect_at_once(fleet: Path) -> None:
    serving = Roster(fleet)
    token = serving.add("pi-1", when=WHEN)
    digest = serving.admit("pi-1", token)
    code = (
        "import sys; from pathlib import Path; from datetime import datetime;"
        "from cutlayer.gate.roster import Roster;"
        "Roster(Path(sys.argv[1])).revoke('pi-1', when=datetime(2026, 11, 22))"
    )
    subprocess.run([sys.executable, "-c", code, fleet], check=True)
    for ask in (lambda: serving.admit("pi-1", token), lambda: serving.standing("pi-1", digest)):
        with pytest.raises(Refused) as error:
            ask()
        assert reason(error) == "revoked"
    assert serving.names() == []


def test_who_is_added_again_needs_the_new_token(fleet: Path) -> None:
    """Also one that is still connected with the old one."""
    roster = Roster(fleet)
    old = roster.add("pi-1", when=WHEN)
    proved = roster.admit("pi-1", old)
    roster.revoke("pi-1", when=WHEN)
    new = roster.add("pi-1", when=LATER)
    roster.admit("pi-1", new)
    with pytest.raises(Refused) as error:
        roster.admit("pi-1", old)
    assert reason(error) == "wrong-token"
    with pytest.raises(Refused) as error:
        roster.standing("pi-1", proved)
    assert reason(error) == "replaced"


def test_a_certificate_is_known_by_its_fingerprint(fleet: Path) -> None:
    roster = Roster(fleet)
    roster.add_certificate("pi-1", "ab12", when=WHEN)
    roster.standing("pi-1", "ab12")
    with pytest.raises(Refused) as error:
        roster.standing("pi-1", "ab13")
    assert reason(error) == "wrong-certificate"
    for token in ("", "ab12"):
        with pytest.raises(Refused) as error:  # no token stands for it
            roster.admit("pi-1", token)
        assert reason(error) == "wrong-token"


def test_the_file_holds_no_token_and_is_its_owners(fleet: Path) -> None:
    roster = Roster(fleet)
    token = roster.add("pi-1", when=WHEN)
    file = fleet / "roster.json"
    assert token not in file.read_text()
    assert token not in repr(roster.entries())
    assert file.stat().st_mode & 0o777 == 0o600
    row = json.loads(file.read_text())["devices"]["pi-1"]
    assert (row["kind"], len(row["salt"]), len(row["digest"])) == ("token", 32, 64)


def test_refusals_never_say_the_token(fleet: Path) -> None:
    roster = Roster(fleet)
    token = roster.add("pi-1", when=WHEN)
    roster.add("pi-2", when=WHEN)
    for name in ("pi-2", "pi-3"):
        with pytest.raises(Refused) as error:
            roster.admit(name, token)
        assert token not in str(error.value)


def test_two_processes_lose_nothing_of_each_other(fleet: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import datetime;"
        "from cutlayer.gate.roster import Roster; roster = Roster(Path(sys.argv[1]));"
        "[roster.add(f'{sys.argv[2]}-{i}', when=datetime(2026, 11, 22)) for i in range(20)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, fleet, name]) for name in ("a", "b")]
    assert [process.wait() for process in running] == [0, 0]
    assert len(Roster(fleet).names()) == 40


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "ä", "x" * 65, "pi-1\n", "*"])
def test_names_are_plain(name: str, fleet: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        Roster(fleet).add(name, when=WHEN)


def test_a_device_is_added_once_and_revoked_once(fleet: Path) -> None:
    roster = Roster(fleet)
    roster.add("x" * 64, when=WHEN)
    with pytest.raises(ConfigError, match="Revoke it first"):
        roster.add_certificate("x" * 64, "ab", when=WHEN)
    with pytest.raises(ConfigError, match=r"\(x+\), got 'y'"):
        roster.revoke("y", when=WHEN)
    roster.revoke("x" * 64, when=LATER)
    with pytest.raises(ConfigError, match=r"\(nobody\)"):
        roster.revoke("x" * 64, when=LATER)
    entry = roster.entries()["x" * 64]
    assert (entry.since, entry.revoked) == ("2026-11-21T12:00:00+00:00", "2026-11-22T12:00:00+00:00")


def test_a_fleet_has_one_kind(fleet: Path) -> None:
    roster = Roster(fleet)
    assert roster.kind is None
    roster.add("pi-1", when=WHEN)
    with pytest.raises(ConfigError, match="with a token, as all others have"):
        roster.add_certificate("pi-2", "ab", when=WHEN)
    assert roster.kind == "token"
    roster.revoke("pi-1", when=LATER)
    roster.add_certificate("pi-2", "ab", when=WHEN)
    assert roster.kind == "certificate"


def test_a_folder_without_a_roster_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cutlayer fleet init"):
        Roster(tmp_path)


def test_a_folder_has_one_roster(fleet: Path) -> None:
    with pytest.raises(ConfigError, match="without a roster"):
        Roster.create(fleet)


@pytest.mark.parametrize("content", ["{", "[]", '{"devices": {"pi-1": {}}}', '{"devices": [1]}'])
def test_a_torn_roster_lets_nobody_in(content: str, fleet: Path) -> None:
    serving = Roster(fleet)
    token = serving.add("pi-1", when=WHEN)
    (fleet / "roster.json").write_text(content)
    with pytest.raises(Refused) as error:
        serving.admit("pi-1", token)
    assert reason(error) == "roster-unreadable"
    with pytest.raises(ConfigError, match="expected a roster"):
        Roster(fleet)


def test_a_token_is_stored_with_its_salt(fleet: Path) -> None:
    token = Roster(fleet).add("pi-1", when=WHEN)
    entry = Roster(fleet).entries()["pi-1"]
    assert entry.digest == hashlib.sha256(bytes.fromhex(entry.salt) + token.encode()).hexdigest()


def test_no_token_stands_for_a_certificate(fleet: Path) -> None:
    """Not even one whose hash it would be."""
    roster = Roster(fleet)
    roster.add_certificate("pi-1", hashlib.sha256(b"known").hexdigest(), when=WHEN)
    with pytest.raises(Refused) as error:
        roster.admit("pi-1", "known")
    assert reason(error) == "wrong-token"


def test_who_stands_is_known_without_a_descriptor(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers' connections may have taken all of them; a roster that has changed meanwhile lets nobody in."""
    roster = Roster(fleet)
    digest = roster.admit("pi-1", roster.add("pi-1", when=WHEN))

    def none_left(*_given: object, **_named: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as starved:
        starved.setattr("builtins.open", none_left)
        roster.standing("pi-1", digest)
    Roster(fleet).revoke("pi-1", when=LATER)
    with monkeypatch.context() as starved:
        starved.setattr("builtins.open", none_left)
        with pytest.raises(Refused) as error:
            roster.standing("pi-1", digest)
        assert reason(error) == "roster-unreadable"
    with pytest.raises(Refused) as error:
        roster.standing("pi-1", digest)
    assert reason(error) == "revoked"
