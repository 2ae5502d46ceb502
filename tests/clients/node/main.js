"use strict";

// node main.js PACKAGE: the conversation that stands in the standard input, with the package's WebSocket.
const { readFileSync } = require("node:fs");
const converse = require("./converse.js");
const { WebSocket } = require(process.argv[2]);

converse(WebSocket, JSON.parse(readFileSync(0, "utf-8"))).then((end) => process.stdout.write(JSON.stringify(end)));
