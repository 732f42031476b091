// A producer that needs nothing but @bsv/sdk: it commits to a packet, pays for the transaction with its own key, signs the
// packet, publishes it, and waits until a block holds it.
//
//     npm install @bsv/sdk
//     PRODUCER_KEY=<64 hex digits> node examples/producer.mjs http://127.0.0.1:7878 weather-001 coin.json '{"t":21}'
//
// coin.json: {"tx": "<hex>", "vout": 0}, a transaction and which of its outputs pays the key's address. On a node with a
// regtest chain: overlayd regtest pay ADDRESS 100000 --json > coin.json (without coin.json the address is printed). The change
// is written back as the next coin, before anything is published; beside it stands the packet, so that a run after a lost
// answer sends the same one again. The stream commits each packet: {"confirm": {"commit": "packet"}}. OVERLAYD_KEY: a key with
// the scopes publish and subscribe, where the node wants one.

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const {
  Hash, P2PKH, PrivateKey, Random, SatoshisPerKilobyte, Script, SignedMessage, Transaction, Utils,
} = createRequire(process.env.PRODUCER_MODULES ?? import.meta.url)("@bsv/sdk");
const [url, stream, coinFile, data] = process.argv.slice(2);
const key = PrivateKey.fromHex(process.env.PRODUCER_KEY);
const headers = process.env.OVERLAYD_KEY ? { authorization: `Bearer ${process.env.OVERLAYD_KEY}` } : {};

const utf8 = (text) => Utils.toArray(text, "utf8");
const lp = (octets) => [...new Utils.Writer().writeUInt32BE(octets.length).toArray(), ...octets];

// `sent` is the JSON text of `data` exactly as it will stand in the request.
function commitmentOf(salt, id, type, sent) {
  const members = [stream, id, type, "", "", "", "", ""].flatMap((text) => lp(utf8(text)));
  return Hash.sha256([...utf8("overlayd/packet/1\n"), ...salt, ...members, ...Hash.sha256(utf8(sent))]);
}

async function spend({ tx, vout }, commitment) {
  const made = new Transaction();
  made.addInput({
    sourceTransaction: Transaction.fromHex(tx), sourceOutputIndex: vout ?? 0, unlockingScriptTemplate: new P2PKH().unlock(key),
  });
  const script = `006a086f7665726c617964010120${Utils.toHex(commitment)}`;
  made.addOutput({ lockingScript: Script.fromHex(script), satoshis: 0 });
  made.addOutput({ lockingScript: new P2PKH().lock(key.toAddress()), change: true });
  await made.fee(new SatoshisPerKilobyte(100));
  await made.sign();
  return made;
}

async function prepare(coin) {
  const [salt, id, type] = [Random(16), `js-${Utils.toHex(Random(8))}`, "reading"];
  const commitment = commitmentOf(salt, id, type, data);
  const tx = await spend(coin, commitment);
  const signature = SignedMessage.sign([...utf8("overlayd/sign/1\n"), ...commitment], key);
  const members = { id, type, salt: Utils.toBase64(salt), signature: Utils.toBase64(signature), tx: tx.toHexEF() };
  const packet = `${JSON.stringify(members).slice(0, -1)},"data":${data}}`;
  return { tx: tx.toHex(), vout: 1, packet };
}

function keep(book) {
  writeFileSync(`${coinFile}.new`, JSON.stringify(book));
  renameSync(`${coinFile}.new`, coinFile);
}

async function* messages(query) {
  const response = await fetch(`${url}/v1/live?${new URLSearchParams(query)}`, {
    headers: { ...headers, accept: "application/x-ndjson" },
  });
  if (!response.ok) throw new Error(await response.text());
  let rest = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

async function follow({ stream, sequence, cursor }) {
  for (;;) {
    // From the packet's own place: what happened before the connection is told, too. A broken one is made again.
    for await (const message of messages({ stream, after: cursor, deliver: "confirmed", status: "true" })) {
      if (message.type === "packet" && message.packet.packet_sequence === sequence) return message.packet;
      if (message.type !== "status" || message.packet_sequence !== sequence) continue;
      console.log(`${message.confirmation_status} ${message.reason ?? ""}`.trim());
      if (["failed", "dropped"].includes(message.confirmation_status)) throw new Error("it won't be confirmed");
    }
  }
}

if (!existsSync(coinFile)) {
  console.error(`no coin: pay ${key.toAddress()} (regtest: ${key.toAddress("testnet")}) and write ${coinFile}`);
  process.exit(1);
}
let book = JSON.parse(readFileSync(coinFile, "utf8"));
if (!book.packet) keep((book = await prepare(book)));
const response = await fetch(`${url}/v1/streams/${encodeURIComponent(stream)}/packets`, {
  method: "POST", headers: { ...headers, "content-type": "application/json" }, body: book.packet,
});
const receipt = await response.json();
if (!response.ok) throw new Error(`${receipt.code}: ${receipt.detail}`);
keep({ tx: book.tx, vout: book.vout });
console.log(`sequence ${receipt.sequence} transaction ${receipt.txid} ${receipt.commitment}`);
const packet = await follow(receipt);
console.log(`confirmed in block ${packet.block_height}, ${packet.confirmations} deep`);
