// Checks a TypeScript file strictly, then runs its `commitment` over questions: one JSON question a line on stdin, one
// answer in hex a line on stdout. The first argument is the file.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import ts from "typescript";

const [file] = process.argv.slice(2);
const options = { strict: true, noEmit: true, target: ts.ScriptTarget.ES2022, lib: ["lib.es2022.d.ts", "lib.dom.d.ts"] };
const faults = ts.getPreEmitDiagnostics(ts.createProgram([file], options));
if (faults.length) throw new Error(faults.map((fault) => ts.flattenDiagnosticMessageText(fault.messageText, "\n")).join("\n"));
const plain = ts.transpileModule(readFileSync(file, "utf8"), {
  compilerOptions: { module: ts.ModuleKind.ES2022, target: ts.ScriptTarget.ES2022 },
}).outputText;
const { commitment } = await import(`data:text/javascript;base64,${Buffer.from(plain).toString("base64")}`);

for await (const line of createInterface({ input: process.stdin })) {
  const { csalt, sent, ...members } = JSON.parse(line);
  const octets = await commitment(Buffer.from(csalt, "hex"), sent, members);
  console.log(JSON.stringify(Buffer.from(octets).toString("hex")));
}
