// Node with ws: node server.js PORT

const http = require("http");
const { WebSocketServer, WebSocket } = require("ws");

const subscribers = new Set();

const server = http.createServer((request, response) => {
  response.setHeader("Content-Type", "application/json");
  response.end('{"message":"Hello, World!"}');
});

function echo(ws) {
  ws.on("message", (message, isBinary) => ws.send(message, { binary: isBinary }));
}

function sub(ws) {
  subscribers.add(ws);
  ws.on("close", () => subscribers.delete(ws));
}

function pub(ws) {
  ws.on("message", (message, isBinary) => {
    for (const subscriber of subscribers) {
      if (subscriber.readyState === WebSocket.OPEN) subscriber.send(message, { binary: isBinary });
    }
  });
}

const views = { "/echo": echo, "/binary": echo, "/sub": sub, "/pub": pub };

new WebSocketServer({ server }).on("connection", (ws, request) => {
  ws.on("error", console.error);
  views[request.url](ws);
});

server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
