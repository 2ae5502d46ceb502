"use strict";

// Plays the cases of live_vectors.json over anything with the browsers' WebSocket interface. Strings that begin with
// "*" stand for any text, the same one for the same name. Resolves to "", or to what came in place of what.
function play(WebSocket, { url, cases, limit }) {
  const known = {}, received = [];
  const fill = (value) =>
    typeof value === "string" ? known[value] ?? value
      : value && typeof value === "object" && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, fill(each)]))
        : value;
  const fits = (expected, got) => {
    if (typeof expected === "string" && expected[0] === "*")
      return typeof got === "string" && (expected === "*" || (known[expected] ??= got) === got);
    if (expected === null || typeof expected !== "object") return expected === got;
    const keys = Object.keys(expected);
    return got !== null && typeof got === "object" && keys.length === Object.keys(got).length && keys.every((key) => fits(expected[key], got[key]));
  };
  return new Promise((resolve) => {
    const steps = cases.flatMap(({ name, steps }) => steps.map((step) => ({ name, step })));
    const socket = new WebSocket(url, ["microws.v1"]);
    const timer = setTimeout(() => end(`no answer within ${limit} s`), 1000 * limit);
    let waiting = null;
    const end = (text) => {
      clearTimeout(timer);
      resolve(text && `${steps[0]?.name}: ${text}`);
      socket.close();
    };
    const goOn = () => {
      for (; steps.length; steps.shift()) {
        const [[what, value]] = Object.entries(steps[0].step);
        if (what === "client") {
          socket.send(JSON.stringify(fill(value)));
          continue;
        }
        if (what === "close") return;
        waiting ??= what === "any order" ? [...value] : [value];
        while (waiting.length && received.length) {
          const got = received.shift(), at = waiting.findIndex((expected) => fits(expected, got));
          if (at < 0) return end(`expected ${JSON.stringify(fill(waiting))}, got ${JSON.stringify(got)}`);
          waiting.splice(at, 1);
        }
        if (waiting.length) return;
        waiting = null;
      }
      end("");
    };
    socket.onmessage = ({ data }) => {
      received.push(JSON.parse(data));
      goOn();
    };
    socket.onclose = ({ code }) => {
      const expected = steps[0]?.step.close;
      end(code === expected || !steps.length ? "" : `closed with ${code}`);
    };
  });
}

if (typeof module !== "undefined") {
  module.exports = play;
}
