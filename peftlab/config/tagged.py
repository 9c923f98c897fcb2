"""A section of several kinds, distinguished by `name`: `task` and `method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from peftlab.config.section import Section


class TaggedSection(Section):
    """Base of such a section. A kind's first key is `name: Literal["its-name"]`.

    The class that sets `kinds` stands for all of them wherever it annotates a field: a value is
    validated against the kinds known at that moment, and a bare name means a kind's defaults.
    """

    name: str

    kinds: ClassVar[Mapping[str, Any]]
    """Options classes by name, see `registry.Registry`."""

    @classmethod
    def tag(cls) -> str:
        """The name that this kind goes by."""
        return str(get_args(cls.model_fields["name"].annotation)[0])

    @classmethod
    def stands_for_all(cls) -> bool:
        """Whether this class is the union of its kinds rather than one of them."""
        return "kinds" in cls.__dict__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls.stands_for_all():
            return handler(source)

        def validate(value: Any) -> Any:
            named = {"name": value} if isinstance(value, str) else value
            return _union(cls).validate_python(named)

        return core_schema.no_info_plain_validator_function(validate)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(_union(cls).core_schema if cls.stands_for_all() else schema)


def _union(section: type[TaggedSection]) -> TypeAdapter[Any]:
    union: Any = Union[tuple(section.kinds.values())]  # noqa: UP007
    return TypeAdapter(Annotated[union, Field(discriminator="name")])
