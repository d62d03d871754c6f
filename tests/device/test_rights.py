"""The accounts that may read a file, by a mode or by a list of access."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cutlayer.device import rights
from cutlayer.device.rights import open_to_others, others_on
from cutlayer.device.token import read_token
from cutlayer.errors import ConfigError

ME = "S-1-5-21-1004336348-1177238915-682003330-1001"
MINE = f"O:{ME}G:{ME}D:PAI(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;{ME})"


@pytest.mark.parametrize(
    ("sddl", "others"),
    [
        (MINE, []),
        (f"O:BAG:SYD:(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1301bf;;;AU)(A;ID;FA;;;{ME})", ["AU", ME]),
        (f"O:{ME}D:(A;;FR;;;WD)(A;;FA;;;{ME})", ["WD"]),
        (f"O:{ME}D:(D;;FA;;;WD)(A;;FA;;;{ME})", []),
        (f"O:{ME}D:(XA;;FR;;;BU;(x))", ["BU"]),
        (f"O:{ME}D:NO_ACCESS_CONTROL", ["everybody"]),
        (f"O:{ME}", ["everybody"]),
        ("", ["everybody"]),
    ],
)
def test_who_is_on_a_list_beside_the_owner(sddl: str, others: list[str]) -> None:
    assert others_on(sddl) == others


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604])
def test_modes(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(mode)
    with open(path) as file:
        found = open_to_others(path, file.fileno())
    assert (found is None) == (mode & 0o077 == 0)
    assert found is None or (found.what, found.mend) == (f"mode {mode:o}", f"chmod 600 {path}")


def test_a_token_where_files_have_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows says them: we have none to ask."""
    path, said = tmp_path / "it's $(mine); & token", [MINE]
    path.write_text("secret")

    def asked(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        assert not any(str(path) in word for word in words)
        assert how["env"]["CUTLAYER_ASKED"] == str(path)
        return subprocess.CompletedProcess(words, 0, said[0] + "\r\n", "")

    monkeypatch.setattr(subprocess, "run", asked)
    monkeypatch.setattr(rights.open_to_others, "__kwdefaults__", {"system": "nt"})
    assert read_token(path, {}) == "secret"
    said[0] = MINE + "(A;;FR;;;BU)"
    with pytest.raises(ConfigError, match=r"got a list of access with BU\. Run `icacls "):
        read_token(path, {})

    def fails(*_words: Any, **_how: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(ConfigError, match="a list of access that cannot be read"):
        read_token(path, {})
