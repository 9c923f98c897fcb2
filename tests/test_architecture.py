"""The layers and cycles, read from every import statement, and a few rules about files."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "peftlab"
KERNELS = REPOSITORY / "kernels"
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted(KERNELS.rglob("*.py"))
WITH_BENCHMARKS = SOURCES + sorted((REPOSITORY / "benchmarks").rglob("*.py"))

LONGEST_FILE = 300  # lines
FULLEST_FOLDER = 16  # files

# From the left, which may import everything to its right; siblings never import each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"pipeline"},
    {"training", "evaluation", "export", "bench"},
    {"methods", "fusion", "tasks"},
    {"data", "model", "measure", "run_folder"},
    {"config"},
    {"files"},
    {"errors"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# What `model` needs of the kernels to load 8-bit weights; `fusion` alone may import the rest.
OF_MODEL = {"peftlab_kernels.int8_format", "peftlab_kernels.int8_linear"}
# The bare package is the lazy front, which the outside and the command line use.
FRONT = "peftlab"

# Where the declared distribution's name is not the import's; pydantic's two parts come with it.
DISTRIBUTION = {
    "yaml": "PyYAML",
    "sklearn": "scikit-learn",
    "liger_kernel": "liger-kernel",
    "pydantic_core": "pydantic",
    "annotated_types": "pydantic",
}


def module_name(path: Path) -> str:
    root = KERNELS if KERNELS in path.parents else REPOSITORY
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported_modules(path: Path, *, lazy: bool = True) -> Sequence[tuple[int, str]]:
    """Every module that a file imports, inside functions and under TYPE_CHECKING too.

    `lazy=False` leaves out what a module's `__getattr__` imports. Several tests read each file:
    it is parsed once.
    """
    return tuple(_read_imports(path, lazy))


def _read_imports(path: Path, lazy: bool) -> Iterator[tuple[int, str]]:
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    module = ast.parse(path.read_text(encoding="utf-8"), str(path))
    if not lazy:
        module.body = [
            node
            for node in module.body
            if not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        ]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package[: len(package) - node.level + 1], *([base] if base else [])]
                )
            # `from peftlab import measure` names a layer as much as `import peftlab.measure`.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def unit_of(module: str) -> str:
    """The layer's unit of a module inside peftlab: its first part below the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else FRONT


def violations(path: Path) -> Iterator[str]:
    importer = module_name(path)
    for line, module in imported_modules(path):
        root = module.split(".")[0]
        where = f"{path.relative_to(REPOSITORY)}:{line} imports {module}"
        if importer.split(".")[0] == "peftlab_kernels":
            if root in {"peftlab", "peft", "transformers"}:
                yield f"{where}: the kernels know torch and triton only"
        elif root == "peftlab_kernels":
            unit = unit_of(importer)
            if unit != "fusion" and not (
                unit in {"model", "export"} and module.startswith(tuple(OF_MODEL))
            ):
                yield f"{where}: only fusion imports the kernels"
        elif root == "peftlab":
            a, b = unit_of(importer), unit_of(module)
            if b == FRONT and a not in {"cli", "__main__"}:
                yield f"{where}: the bare package is for users; import the leaf module"
            elif FRONT in (a, b):
                continue
            elif a != b and LEVEL[b] <= LEVEL[a]:
                yield f"{where}: {b} is not to the right of {a}"


def test_every_module_belongs_to_a_layer() -> None:
    top = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert top - {"__init__"} <= LEVEL.keys(), "name the new unit's layer in LAYERS"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_only_to_the_right(path: Path) -> None:
    assert list(violations(path)) == []


def test_the_layer_test_sees_what_it_forbids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "peftlab"
    (package / "data").mkdir(parents=True)
    offender = package / "data" / "leak.py"
    offender.write_text(
        "from ..bench import lab\n"
        "from . import sources\n"
        "def f():\n    from peftlab import training\n    import peftlab.model.loading\n"
        "import peftlab_kernels.eager.backend\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    seen = "\n".join(violations(offender))
    for forbidden in ("bench", "training", "model", "peftlab_kernels"):
        assert forbidden in seen
    assert "sources" not in seen


def import_cycle(sources: Sequence[Path]) -> list[str]:
    """The modules of one cycle of imports between files, the first of them repeated; or none.

    Deferred imports and those under TYPE_CHECKING count, those of a module's `__getattr__` do not:
    they are how a package offers names lazily. `import a.b.c` is an arrow to `c` alone.
    """
    modules = {module_name(path): path for path in sources}
    arrows: dict[str, set[str]] = {}
    for importer, path in modules.items():
        arrows[importer] = set()
        for _, name in imported_modules(path, lazy=False):
            # `from a.b import c` names the module a.b.c, or something that a.b defines.
            imported = name if name in modules else name.rpartition(".")[0]
            if imported in modules and imported != importer:
                arrows[importer].add(imported)
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_cycle_of_imports() -> None:
    assert import_cycle(WITH_BENCHMARKS) == []


@pytest.mark.parametrize(
    ("text", "cyclic"),
    [
        ("import peftlab.data.rows", True),
        ("from peftlab.data import rows", True),
        ("from peftlab.data.rows import Row", True),
        ("from . import rows", True),
        ("def f():\n    from peftlab.data.rows import Row", True),
        ("if TYPE_CHECKING:\n    from peftlab.data.rows import Row", True),
        ("import peftlab.data", False),
        ("rows = 'peftlab.data.rows'", False),
        ("def __getattr__(name):\n    from peftlab.data import rows", False),
    ],
)
def test_the_cycle_test_sees_a_cycle(
    text: str, cyclic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "peftlab" / "data"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "rows.py").write_text("def f():\n    from peftlab.data.columns import Column\n")
    (folder / "columns.py").write_text(text + "\n")
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    cycle = import_cycle(sorted(folder.glob("*.py")))
    assert set(cycle) == ({"peftlab.data.columns", "peftlab.data.rows"} if cyclic else set())


def test_folders_have_few_files() -> None:
    counts = Counter(path.parent for path in WITH_BENCHMARKS if path.name != "__init__.py")
    full = {
        str(folder.relative_to(REPOSITORY)): count
        for folder, count in counts.items()
        if count > FULLEST_FOLDER and folder != REPOSITORY / "benchmarks" / "results"
    }
    assert full == {}, f"a folder has at most {FULLEST_FOLDER} files; sort them by idea"


@pytest.mark.parametrize("path", WITH_BENCHMARKS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_a_file_is_short(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST_FILE, "a file is one idea"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_a_file_prints_nothing(path: Path) -> None:
    if "cli" in path.relative_to(REPOSITORY).with_suffix("").parts:
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert calls == [], "only the command line prints"


def test_names_of_files() -> None:
    assert not (KERNELS / "__init__.py").exists(), "it would shadow Hugging Face's `kernels`"
    assert [p for p in SOURCES if "utils" in p.stem] == []
    assert sorted((REPOSITORY / "tests").rglob("__init__.py")) == []


def test_every_dependency_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        requirements += extra
    declared = {
        r.split(";")[0].split(">")[0].split("<")[0].split("[")[0].strip().lower()
        for r in requirements
    }
    used = (
        {module.split(".")[0] for path in SOURCES for _, module in imported_modules(path)}
        - sys.stdlib_module_names
        - {"peftlab", "peftlab_kernels"}
    )
    known = packages_distributions()
    missing = {
        name
        for name in used
        if DISTRIBUTION.get(name, known.get(name, [name])[0]).lower() not in declared
    }
    assert missing == set(), "declare them in pyproject.toml"


def test_importing_the_package_stays_light() -> None:
    code = (
        "import peftlab, sys; heavy = {'torch', 'transformers', 'datasets', 'peft', 'matplotlib'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
