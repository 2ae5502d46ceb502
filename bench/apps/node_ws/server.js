// Node with ws: node server.js PORT

const http = require("http");
const { WebSocketServer } = require("ws");

const server = http.createServer((request, response) => {
  response.setHeader("Content-Type", "application/json");
  response.end('{"message":"Hello, World!"}');
});

new WebSocketServer({ server }).on("connection", (ws) => {
  ws.on("error", console.error);
  ws.on("message", (message, isBinary) => ws.send(message, { binary: isBinary }));
});

server.listen(Number(process.argv[2]), "127.0.0.1");
