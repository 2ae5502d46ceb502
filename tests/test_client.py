"""``app.client_js``: the files of the client."""

import pytest

from microws import App, RoutingError

pytestmark = pytest.mark.anyio


async def test_app_serves_the_client_and_its_types():
    app = App()
    app.client_js()
    app.client_js("/static/live.js")
    async with app.test_client() as client:
        script = await client.get("/microws.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "export function connect(" in script.text
        assert script.headers["cache-control"] == "no-cache"
        again = await client.get("/static/live.js", headers={"if-none-match": script.headers["etag"]})
        assert again.status == 304
        types = await client.get("/microws.d.ts")
        assert types.headers["content-type"] == "text/plain; charset=utf-8"
        assert "export function connect<" in types.text
        assert (await client.get("/static/live.d.ts")).text == types.text


@pytest.mark.parametrize("pattern", ["/microws", "/{name}.js"])
def test_pattern_of_the_client_is_a_path_to_a_module(pattern):
    with pytest.raises(RoutingError, match=r'expected a pattern such as "/microws.js" for the client, got '):
        App().client_js(pattern)
