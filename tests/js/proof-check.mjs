// Checks the anchor of proof files with @bsv/sdk and Node's own SHA-256: nothing here comes from overlayd.
// One JSON line in, {"proof": <proof file>, "headers": {"<height>": "<80 bytes in hex>"}}; one line out.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { MerklePath, Transaction, Utils } from "@bsv/sdk";

const sha256 = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const sha256d = (octets) => sha256(sha256(octets));
const reversed = (octets) => Buffer.from(octets).reverse();
const bytes = (text) => Buffer.from(text.split(":")[1], "hex"); // "sha256:<hex>"

// RFC 6962 2.1.1: the root that an audit path leads to.
const climb = (leaf, index, size, path) => {
  let [hash, place, last] = [leaf, index, size - 1];
  for (const step of path) {
    if (last === 0) throw new Error("the path is too long");
    if (place % 2 === 1 || place === last) {
      hash = sha256(Buffer.from([1]), step, hash);
      while (place % 2 === 0 && place !== 0) [place, last] = [place >> 1, last >> 1];
    } else {
      hash = sha256(Buffer.from([1]), hash, step);
    }
    [place, last] = [place >> 1, last >> 1];
  }
  if (last !== 0) throw new Error("the path is too short");
  return hash;
};

const check = async ({ proof, headers }) => {
  const { tx: raw, bump, header: headerHex, height, output_index: index } = proof.anchor;
  const header = Buffer.from(headerHex, "hex");
  if (headers[height] !== headerHex) throw new Error("another header");
  const exponent = header[75], mantissa = header.readUIntLE(72, 3);
  if (BigInt("0x" + reversed(sha256d(header)).toString("hex")) > BigInt(mantissa) << BigInt(8 * (exponent - 3)))
    throw new Error("the header lacks work");

  const tx = Transaction.fromHex(raw);
  const path = MerklePath.fromHex(bump);
  if (path.blockHeight !== height) throw new Error("another height");
  const root = reversed(header.subarray(36, 68)).toString("hex");
  if (path.computeRoot(tx.id("hex")) !== root) throw new Error("another root");
  tx.merklePath = path;
  const tracker = { isValidRootForHeight: async (one, at) => at === height && one === root, currentHeight: async () => height };
  if (!(await path.verify(tx.id("hex"), tracker))) throw new Error("the path doesn't hold");

  const script = tx.outputs[index].lockingScript.toHex();
  const lines = proof.checkpoint.split("\n").slice(0, 3);
  const entry = Buffer.from(proof.entry, "base64");
  const rootOfLog = climb(
    sha256(Buffer.from([0]), entry), proof.leaf_index, Number(lines[1]), proof.inclusion_path.map(bytes),
  );
  if (rootOfLog.toString("base64") !== lines[2]) throw new Error("the entry isn't in the tree");
  const mark = "006a08" + Utils.toHex(Utils.toArray("overlayd", "utf8")) + "01";
  const kinds = {
    checkpoint: mark + "0220" + sha256(lines.map((line) => line + "\n").join("")).toString("hex"),
    commitment: mark + "0120" + (proof.sealed?.commitment ?? "").replace("sha256:", ""),
  };
  const covers = Object.keys(kinds).find((kind) => kinds[kind] === script);
  if (!covers) throw new Error("the output commits to something else");
  return { txid: tx.id("hex"), covers, block: reversed(sha256d(header)).toString("hex") };
};

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify({ value: await check(JSON.parse(line)) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message ?? error) }));
  }
}
