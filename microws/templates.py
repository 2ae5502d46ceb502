"""Pages from Jinja2 templates; needs the extra ``templates``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from microws.errors import FeatureUnavailable

__all__ = ["Templates"]


class Templates:
    """
    The templates in one directory. HTML is escaped; ``url_for`` is there by that name.

    Args:
        directory: Where they are.
        url_for: The app's.

    Raises:
        FeatureUnavailable: Jinja2 is not installed.
    """

    def __init__(self, directory: Path, *, url_for: Callable[..., str]) -> None:
        try:
            import jinja2
        except ImportError:
            raise FeatureUnavailable('templates need Jinja2: pip install "microws[templates]"') from None
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(directory), autoescape=jinja2.select_autoescape(default=True)
        )
        self._environment.globals["url_for"] = url_for

    def render(self, name: str, context: dict[str, Any]) -> str:
        """
        Fill the template ``name``.

        Raises:
            jinja2.TemplateNotFound: No such file in the directory.
        """
        return self._environment.get_template(name).render(context)
