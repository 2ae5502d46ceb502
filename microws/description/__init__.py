"""
What an app consists of, and what is written from it.

``describe`` reads an app once. From its description come the page of ``App.docs``, the list of ``microws routes``, and
documents: AsyncAPI, OpenAPI and a JSON Schema.
"""

from microws.description.model import Description, RouteDescription, TopicDescription
from microws.description.reading import describe
from microws.description.schemas import Schemas

__all__ = ["Description", "RouteDescription", "Schemas", "TopicDescription", "describe"]
