"use strict";

// One conversation over anything with the browsers' WebSocket interface: each message is sent when the one before it
// has come back, then the connection is closed, or the server's close awaited.
function converse(WebSocket, { url, subprotocols, messages, close, limit }) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no end within ${limit} s`)), 1000 * limit);
    const socket = new WebSocket(url, subprotocols);
    const received = [];

    function goOn() {
      if (received.length < messages.length) {
        socket.send(decode(messages[received.length]));
      } else if (close) {
        socket.close(...close);
      }
    }

    socket.binaryType = "arraybuffer";
    socket.onopen = goOn;
    socket.onmessage = ({ data }) => {
      received.push(encode(data));
      goOn();
    };
    socket.onerror = (event) => reject(event.error ?? new Error(event.message ?? "the connection failed"));
    socket.onclose = ({ code, reason }) => {
      clearTimeout(timer);
      resolve({ subprotocol: socket.protocol, received, code, reason });
    };
  });
}

function decode({ text, base64 }) {
  return text ?? Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function encode(data) {
  if (typeof data === "string") {
    return { text: data };
  }
  const bytes = new Uint8Array(data);
  let characters = "";
  // A call takes only so many arguments.
  for (let start = 0; start < bytes.length; start += 1 << 14) {
    characters += String.fromCharCode(...bytes.subarray(start, start + (1 << 14)));
  }
  return { base64: btoa(characters) };
}

if (typeof module !== "undefined") {
  module.exports = converse;
}
