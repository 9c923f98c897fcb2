"""The wheel and the sdist hold every file that runs, and nothing else of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOTS = {"peftlab": REPOSITORY / "peftlab", "peftlab_kernels": REPOSITORY / "kernels"}
SOURCES = ("peftlab", "kernels", "pyproject.toml", "README.md", "LICENSE")
NOTES = {".md"}
"""What describes the code to its developers stays in the repository."""


def packaged_files() -> set[str]:
    files = set()
    for package in ("peftlab", "kernels/peftlab_kernels"):
        for path in (REPOSITORY / package).rglob("*"):
            inside = path.relative_to(REPOSITORY / package).parts
            if path.is_file() and "__pycache__" not in inside and path.suffix not in NOTES:
                files.add("/".join((PurePosixPath(package).name, *inside)))
    return files


def build(kind: str, out: Path, source: Path) -> Path:
    """Build by the build backend itself, with what is installed: no index is asked."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in, so that no build folder appears in the repository."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, folder / name, ignore=ignored)
        else:
            shutil.copy(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"), sources)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_module_and_all_data(wheel: Path) -> None:
    assert names_in(wheel) == packaged_files()


def test_the_sdist_builds_the_same_wheel(
    sources: Path, wheel: Path, tmp_path: Path
) -> None:  # fmt: skip
    sdist = build("sdist", tmp_path / "sdist", sources)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", tmp_path / "again", unpacked)
    assert again.name == wheel.name
    assert names_in(again) == names_in(wheel)


def test_an_installed_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import peftlab, peftlab_kernels, pathlib, sys\n"
        "site = pathlib.Path(sys.argv[1])\n"
        "assert site in pathlib.Path(peftlab.__file__).parents, peftlab.__file__\n"
        "assert site in pathlib.Path(peftlab_kernels.__file__).parents\n"
        "from importlib.metadata import entry_points, version\n"
        "from peftlab.demo.main_job import HERE\n"
        "assert list(HERE.glob('*.yaml')), HERE\n"
        "from peftlab.cli import main\n"
        "sys.exit(main(['init', '--model', 'm', '--data', 'd.csv', '--method', 'head']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "name: head" in done.stdout
