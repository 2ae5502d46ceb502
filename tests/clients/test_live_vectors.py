"""Other clients play the frames of docs/live-protocol.md, against ``microws run``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import conversing
import node_packages
import pytest
from serving import LIMIT, browsing, running

pytestmark = pytest.mark.xdist_group("clients")

APP = """
from microws import App

app = App()
app.topic("kept:*", history=10)


@app.get("/")
async def page():
    return "<h1>page</h1>"


for pattern in ("kept:{name}", "plain:{name}"):
    app.on_subscribe(pattern)(lambda connection, name: True)
    app.on_publish(pattern)(lambda connection, name, message: message)
app.live("/live")
"""
PLAYER = """
const { readFileSync } = require("node:fs");
const play = require("./vectors.js");
const { WebSocket } = require(process.argv[1]);
play(WebSocket, JSON.parse(readFileSync(0, "utf-8"))).then((text) => process.stdout.write(text, () => process.exit(0)));
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "app.py").write_text(APP)
    with running([sys.executable, "-m", "microws", "run", "--port", "0", "--workers", "2"], cwd=folder) as server:
        yield server
        assert server.stop() == 0


def request_for(server, name):
    """What the player gets. Each client has topics of its own."""
    text = (Path(__file__).parents[1] / "live_vectors.json").read_text()
    return {"url": f"{server.ws_url}/live", "cases": json.loads(text.replace(':1"', f':{name}"')), "limit": LIMIT}


@pytest.mark.parametrize("package", ["ws", "undici"])
def test_client_for_node_gets_the_frames(server, package):
    node_packages.install(conversing.NODE)
    done = subprocess.run(
        ["node", "-e", PLAYER, package],
        input=json.dumps(request_for(server, package)),
        cwd=conversing.NODE,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_browser_gets_the_frames(server):
    with browsing() as chromium:
        page = chromium.new_page()
        page.goto(server.url)
        page.add_script_tag(path=conversing.NODE / "vectors.js")
        assert page.evaluate("request => play(WebSocket, request)", request_for(server, "browser")) == ""
