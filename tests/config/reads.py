"""Finds, without running anything, which keys of which section the source reads.

Expressions get the names of their classes from annotations: of parameters, of class attributes,
of what functions return. A container of sections counts as its sections; that errs only towards
knowing more types, and a read always belongs to one section and one key.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from peftlab.config.loading.keys import tag_of
from peftlab.config.schema import RunConfig, Section

Types = frozenset[str]
NOTHING: Types = frozenset()
KEEP_TYPE = {"model_copy", "replace", "reversed", "sorted", "list", "tuple", "next", "iter"}
"""Functions that give back what they were given, as far as types go."""


def every_section(section: type[Section] = RunConfig) -> dict[str, type[Section]]:
    """All sections of the schema by class name."""
    found = {section.__name__: section}
    for item in section.model_fields.values():
        for inner in sections_in(item.annotation):
            found |= every_section(inner)
    return found


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation names, in its lists and mappings too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


@dataclass
class Reads:
    """What was read: (section, key), and the sections whose `model_dump` is called."""

    sections: dict[str, type[Section]] = field(default_factory=every_section)
    keys: set[tuple[str, str]] = field(default_factory=set)
    dumped: set[str] = field(default_factory=set)
    attributes: dict[tuple[str, str], Types] = field(default_factory=dict)
    returned: dict[str, Types] = field(default_factory=dict)

    def of(self, modules: Iterable[ast.Module]) -> Reads:
        """Read modules: first what they declare, then what they do."""
        modules = list(modules)
        for module in modules:
            self._declare(module)
        for module in modules:
            self._walk(module, {})
        return self

    def named(self, annotation: ast.expr | None) -> Types:
        """The classes that an annotation names."""
        found: set[str] = set()
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {word.strip() for word in node.value.split("|")}
        if found & {"MethodOptions", "TaskOptions", "Options"}:
            found |= {name for name in self.sections if name.endswith("Options")}
        # What is said of a class is said of those that are derived from it.
        found |= {
            name
            for name, section in self.sections.items()
            if any(base.__name__.endswith("Options") and base.__name__ in found
                   for base in section.__mro__)
        }  # fmt: skip
        return frozenset(found)

    def _declare(self, module: ast.Module) -> None:
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        self.attributes[node.name, item.target.id] = self.named(item.annotation)
                    elif isinstance(item, ast.FunctionDef) and _is_property(item):
                        self.attributes[node.name, item.name] = self.named(item.returns)
            elif isinstance(node, ast.FunctionDef):
                known = self.returned.get(node.name, NOTHING)
                self.returned[node.name] = known | self.named(node.returns)

    def _walk(self, scope: ast.AST, outer: dict[str, Types], owner: str | None = None) -> None:
        """Visit one scope; functions in it see its names."""
        names = dict(outer)
        if isinstance(scope, ast.FunctionDef | ast.Lambda):
            every = scope.args
            for argument in (*every.posonlyargs, *every.args, *every.kwonlyargs):
                names[argument.arg] = self.named(argument.annotation)
            if owner is not None and every.args and every.args[0].arg == "self":
                names["self"] = frozenset({owner})
        own = list(_own(scope))
        # Twice: a name may be bound below where it is used.
        for _ in range(2):
            for node in own:
                self._bind(node, names)
        narrowed = self._narrowed(own)
        for node in own:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._read(node, names | narrowed.get(node, {}))
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                self._walk(node, names, scope.name if isinstance(scope, ast.ClassDef) else owner)
            elif isinstance(node, ast.ClassDef):
                self._walk(node, names)

    def _bind(self, node: ast.AST, names: dict[str, Types]) -> None:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = self.named(node.annotation)
            case ast.Assign(targets=[target]):
                self._bind_to(target, node.value, names)
            case ast.NamedExpr() | ast.For() | ast.comprehension():
                source = node.value if isinstance(node, ast.NamedExpr) else node.iter
                self._bind_to(node.target, source, names)

    def _bind_to(self, target: ast.expr, value: ast.expr, names: dict[str, Types]) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = self.types(value, names) or names.get(target.id, NOTHING)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self._bind_to(one, other, names)

    def types(self, node: ast.expr, names: dict[str, Types]) -> Types:
        """The classes that an expression may be of."""
        match node:
            case ast.Name(id=name):
                return names.get(name, NOTHING)
            case ast.Attribute(value=value, attr=name):
                return self._attribute(self.types(value, names), name)
            case ast.Call(func=ast.Attribute(value=value, attr="model_copy")):
                return self.types(value, names)
            case ast.Call(func=ast.Name(id=name)) if name in KEEP_TYPE and node.args:
                return self.types(node.args[0], names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return self.returned.get(name, NOTHING) | {name}
            case ast.Subscript(value=value):
                return self.types(value, names)
            case ast.IfExp(body=one, orelse=other):
                return self.types(one, names) | self.types(other, names)
        return NOTHING

    def _narrowed(self, nodes: Iterable[ast.AST]) -> dict[ast.AST, dict[str, Types]]:
        """Names whose classes are fewer inside `case X():`, `if isinstance(...)` and the like."""
        found: dict[ast.AST, dict[str, Types]] = {}

        def narrow(name: str, types: Types, inside: Iterable[ast.AST]) -> None:
            for node in (inner for part in inside for inner in ast.walk(part)):
                found.setdefault(node, {})[name] = types

        for node in nodes:
            match node:
                case ast.Match(subject=ast.Name(id=name)):
                    for case in node.cases:
                        classes = [
                            p for p in ast.walk(case.pattern) if isinstance(p, ast.MatchClass)
                        ]
                        if classes:
                            types = frozenset().union(*(self.named(p.cls) for p in classes))
                            narrow(name, types, case.body)
                case ast.If() | ast.IfExp():
                    body = node.body if isinstance(node.body, list) else [node.body]
                    for name, types in self._tested(node.test):
                        narrow(name, types, body)
                case ast.BoolOp(op=ast.And(), values=[first, *others]):
                    for name, types in self._tested(first):
                        narrow(name, types, others)
        return found

    def _tested(self, test: ast.expr) -> Iterator[tuple[str, Types]]:
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                for value in values:
                    yield from self._tested(value)
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), kind]):
                yield name, self.named(kind)
            case ast.Compare(
                left=ast.Attribute(value=ast.Name(id=name), attr="name"),
                ops=[ast.Eq()],
                comparators=[ast.Constant(value=tag)],
            ):
                yield name, frozenset(n for n, s in self.sections.items() if tag_of(s) == tag)

    def _attribute(self, types: Types, name: str) -> Types:
        found: set[str] = set()
        for kind in types:
            section = self.sections.get(kind)
            if section is None:
                found |= self.attributes.get((kind, name), NOTHING)
            elif name in section.model_fields:
                inner = sections_in(section.model_fields[name].annotation)
                found |= {inner_section.__name__ for inner_section in inner}
        return frozenset(found)

    def _read(self, node: ast.Attribute, names: dict[str, Types]) -> None:
        for kind in self.types(node.value, names) & self.sections.keys():
            if node.attr in self.sections[kind].model_fields:
                self.keys.add((kind, node.attr))
            elif node.attr == "model_dump":
                self.dumped.add(kind)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope in order, without what is inside the functions and classes in it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield from _own(child)


def _is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(mark) for mark in function.decorator_list)
