"""
What an app consists of, and what is written from it.

``describe`` reads an app once. From its description come the page of ``App.docs``, the list of ``microws routes``, and
three documents: AsyncAPI, OpenAPI, and one JSON Schema of all types.
"""

from microws.description.asyncapi import write_asyncapi
from microws.description.model import Description, RouteDescription, TopicDescription
from microws.description.openapi import write_openapi
from microws.description.reading import describe
from microws.description.schemas import Schemas
from microws.description.types import write_types

__all__ = [
    "Description",
    "RouteDescription",
    "Schemas",
    "TopicDescription",
    "describe",
    "write_asyncapi",
    "write_openapi",
    "write_types",
]
