"""Options that other packages bring along: what is wrong with one stops no other command."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peftlab.config import json_schema
from peftlab.config.methods.options import METHODS
from peftlab.errors import ConfigError
from peftlab.methods.apply import method_of

HEAD = """
from typing import ClassVar, Literal
from pydantic import Field
from peftlab.config.methods.options import MethodOptions

class {name}(MethodOptions):
"""
BODY = """
    implementation: ClassVar[str] = "{implementation}"
    short_names: ClassVar[tuple[str, ...]] = ("{tag}",)
    short_forms: ClassVar[str] = "{tag}"
"""
FIELD = '    name: Literal["{tag}"]\n'

Install = Callable[..., None]


def options(
    tag: str,
    *,
    name: str = "Options",
    implementation: str = "peftlab.methods.full:Full",
    field: str = FIELD,
    body: str = BODY,
) -> str:
    text = HEAD.format(name=name) + field.format(tag=tag)
    return text + body.format(tag=tag, implementation=implementation)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(mine="...")`: packages with a module `options` each, as pip would install them."""

    def make(**modules: str) -> None:
        site = tmp_path / "site"
        installed = site / "mine-1.0.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\n")
        lines = ["[peftlab.methods]"]
        for tag, text in modules.items():
            package = site / f"{tag}_of_another_package"
            package.mkdir()
            (package / "__init__.py").touch()
            (package / "options.py").write_text(text)
            kind = match[1] if (match := re.search(r"class (\w+)", text)) else "Options"
            lines.append(f"{tag} = {package.name}.options:{kind}")
        (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))

    yield make
    for module in [name for name in sys.modules if "_of_another_package" in name]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from typing import nothing\n", "nothing"),
        ("class Options:\n    pass\n", "it is no subclass of MethodOptions"),
        (options("odd", field=""), 'its field `name` is not annotated Literal["odd"]'),
        (options("odd", field="    name: str\n"), 'is not annotated Literal["odd"]'),
        (options("other"), 'is not annotated Literal["odd"]'),
        (options("odd", body="    reads: ClassVar = frozenset()\n"),
         "its class sets no implementation, short_forms, short_names"),
    ],
    ids=["import", "class", "no name", "text", "other name", "class variables"],
)  # fmt: skip
def test_a_broken_kind_is_left_out(
    text: str, reason: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    built_in = list(METHODS)
    install(odd=text)
    assert list(METHODS) == built_in
    assert "odd_of_another_package.options" in caplog.text
    assert reason in caplog.text
    json_schema()


def test_an_implementation_that_cannot_be_imported_is_named(install: Install) -> None:
    install(odd=options("odd", implementation="lacking_package.method:Odd"))
    chosen = METHODS["odd"].model_validate({"name": "odd"})
    expected = r"method\.name is odd, whose implementation lacking_package\.method:Odd .* install"
    with pytest.raises(ConfigError, match=expected):
        method_of(chosen)


@pytest.mark.parametrize("name", ["Options", "LoraOptions", "BenchRow", "RunConfig"])
def test_classes_of_one_name_are_both_in_the_schema(name: str, install: Install) -> None:
    install(
        one=options("one", name=name),
        two=options("two", name=name, field=f"{FIELD}    rate: float = 1.0\n"),
    )
    schema = json_schema()
    assert {"one", "two", "lora"} <= set(schema["properties"]["method"]["anyOf"][0]["enum"])
    mine = [d for key, d in schema["$defs"].items() if "two_of_another_package" in key]
    assert [set(d["properties"]) for d in mine] == [{"name", "rate"}]
