"""The size of ``microws.js``, and its types."""

import gzip
import json
import subprocess

import conversing
import node_packages
import pytest
from serving import ROOT

import microws

pytestmark = pytest.mark.xdist_group("clients")

CLIENT = ROOT / "microws" / "client"
BIN = conversing.NODE / "node_modules" / ".bin"

CORRECT = """
import { connect, type LiveError } from "./microws.js"
interface Topics { [room: `chat:${string}`]: { text: string }; ticks: number }
const live = connect<Topics>("/live", { token: async () => "t" })
const chat = live.subscribe("chat:1", { since: null, load: async () => {} })
chat.on("message", (data, { id }) => { const text: string = data.text; const position: string | undefined = id })
chat.on("end", (error: LiveError) => error.code.toFixed())
live.subscribe("ticks").on("message", tick => tick.toFixed())
live.on("state", (state, { delay }) => { if (state === "waiting") delay?.toFixed() })
const plain = connect("/live").subscribe("anything")
async function all() {
  for await (const { data } of chat) data.text.trim()
  const { id } = await chat.publish({ text: "hi" })
  return [id, plain, live.send(1)]
}
"""

INCORRECT = (
    'live.subscribe("other")',
    'live.subscribe("ticks").on("message", (tick: string) => tick)',
    'chat.on("else", () => {})',
    'connect("/live", { token: 1 })',
    'live.state = "open"',
    "chat.members.clear()",
)


@pytest.fixture(scope="module", autouse=True)
def installed_packages():
    node_packages.install(conversing.NODE)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def test_client_has_at_most_3_kb_minified_and_gzipped():
    minified = run(BIN / "esbuild", CLIENT / "microws.js", "--minify", "--format=esm", "--target=es2022")
    assert minified.returncode == 0, minified.stderr
    assert len(gzip.compress(minified.stdout, 9)) <= 3 * 1024


def test_package_has_the_version_of_its_server():
    assert json.loads((ROOT / "clients" / "js" / "package.json").read_text())["version"] == microws.__version__


def check_types(directory, text):
    (directory / "microws.d.ts").write_text((CLIENT / "microws.d.ts").read_text())
    (directory / "page.ts").write_text(text)
    flags = ("--noEmit", "--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler")
    return run(BIN / "tsc", *flags, "page.ts", cwd=directory, text=True)


def test_types_accept_what_is_correct(tmp_path):
    result = check_types(tmp_path, CORRECT)
    assert result.returncode == 0, result.stdout


def test_types_refuse_what_is_incorrect(tmp_path):
    first = CORRECT.count("\n") + 1
    result = check_types(tmp_path, CORRECT + "\n".join(INCORRECT))
    lines = {int(line.partition("(")[2].partition(",")[0]) for line in result.stdout.splitlines() if line[0] != " "}
    assert lines == set(range(first, first + len(INCORRECT))), result.stdout
