"""Pages from Jinja2 templates."""

import sys
from pathlib import Path

import jinja2
import pytest
from asking import ask

from microws import App, FeatureUnavailable
from microws.templates import Templates

pytestmark = pytest.mark.anyio

PAGES = {
    "page.html": "<h1>{{ title }}</h1>",
    "note.txt": "{{ title }}",
    "links.html": '<a href="{{ url_for("room", name="ü/x") }}">{% include "page.html" %}</a>',
}

MODULE = """
from microws import App

def make():
    return App()

app = App()
elsewhere = App(templates="pages")
"""


@pytest.fixture
def project(tmp_path):
    """A directory with a module that creates apps, and templates beside it."""
    for folder in ("templates", "pages"):
        directory = tmp_path / folder
        directory.mkdir()
        for name, text in PAGES.items():
            (directory / name).write_text(text if folder == "templates" else f"pages: {text}")
    (tmp_path / "chat.py").write_text(MODULE)
    return tmp_path


def load(project):
    """What ``import chat`` would give, without a trace in ``sys.modules``."""
    names = {"__name__": "chat", "__file__": str(project / "chat.py")}
    exec(compile(MODULE, str(project / "chat.py"), "exec"), names)
    return names


class TestWhere:
    def test_they_stand_beside_the_file_that_creates_the_app(self, project, monkeypatch):
        monkeypatch.chdir("/")
        assert load(project)["app"].render("page.html", title="hi") == "<h1>hi</h1>"

    def test_also_where_a_function_creates_it_and_another_file_calls_that(self, project):
        assert load(project)["make"]().render("page.html", title="hi") == "<h1>hi</h1>"

    def test_another_directory_can_be_named(self, project):
        assert load(project)["elsewhere"].render("page.html", title="hi") == "pages: <h1>hi</h1>"
        assert App(templates=project / "pages").render("note.txt", title="hi") == "pages: hi"
        assert App(templates=str(project / "pages")).render("note.txt", title="hi") == "pages: hi"

    def test_without_a_file_it_is_the_working_directory(self, project, monkeypatch):
        monkeypatch.chdir(project)
        names = {"__name__": "interactive"}
        exec("from microws import App\napp = App()", names)
        assert names["app"].render("note.txt", title="hi") == "hi"

    def test_an_included_app_keeps_its_own(self, project):
        blueprint = load(project)["elsewhere"]
        App(templates=project / "templates").include(blueprint)
        assert blueprint.render("note.txt", title="hi") == "pages: hi"

    def test_a_missing_one_is_said(self, project):
        with pytest.raises(jinja2.TemplateNotFound, match="absent"):
            load(project)["app"].render("absent.html")

    def test_nothing_outside_the_directory_is_read(self, project):
        with pytest.raises(jinja2.TemplateNotFound):
            load(project)["app"].render("../chat.py")


class TestContent:
    @pytest.mark.parametrize("name", ["page.html", "note.txt"])
    def test_values_are_escaped(self, project, name):
        text = load(project)["app"].render(name, title="<script>&'\"")
        assert "&lt;script&gt;&amp;&#39;&#34;" in text

    def test_url_for_is_there_and_the_context_may_replace_it(self, project):
        app = load(project)["app"]
        app.route("/rooms/{name}", name="room")(lambda name: name)
        assert 'href="/rooms/%C3%BC%2Fx"><h1>t</h1>' in app.render("links.html", title="t")
        replaced = app.render("links.html", title="t", url_for=lambda name, /, **params: f"/base/{name}")
        assert 'href="/base/room"' in replaced

    async def test_a_view_returns_it_as_its_page(self, project):
        app = load(project)["app"]

        @app.get("/")
        async def page():
            return app.render("page.html", title="hi")

        response = await ask(app)
        assert (response.text, response.headers["content-type"]) == ("<h1>hi</h1>", "text/html; charset=utf-8")

    def test_a_value_may_be_called_template(self, project):
        (project / "templates" / "t.html").write_text("{{ template }} {{ self }}{{ context }}")
        assert load(project)["app"].render("t.html", template="a", context="b").startswith("a ")


def test_without_jinja2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(FeatureUnavailable, match="pip install jinja2"):
        Templates(Path(), url_for=str).render("page.html", {})
    with pytest.raises(FeatureUnavailable, match="need Jinja2"):
        App().render("page.html")
