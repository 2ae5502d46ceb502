// Reads AsyncAPI documents, one a line, and writes the errors of each: one line of JSON.
const readline = require("node:readline");
const { Parser } = require("@asyncapi/parser");

const ERROR = 0;
const parser = new Parser();

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { diagnostics } = await parser.parse(line);
    const errors = diagnostics.filter((each) => each.severity === ERROR);
    console.log(JSON.stringify(errors.map((each) => `${each.path.join("/")}: ${each.message}`)));
  }
})();
