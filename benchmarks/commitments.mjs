// Commitments and signed transactions by @bsv/sdk alone: how many in a second of processor time, as JSON.
import { createRequire } from "node:module";

const [modules, seconds] = process.argv.slice(2);
const { Hash, P2PKH, PrivateKey, Random, SatoshisPerKilobyte, Script, Transaction, Utils } = createRequire(modules)("@bsv/sdk");
const key = PrivateKey.fromHex("0b".padStart(64, "0"));
const lock = new P2PKH().lock(key.toAddress());
const source = new Transaction();
source.addOutput({ lockingScript: lock, satoshis: 100000 });
const utf8 = (text) => Utils.toArray(text, "utf8");
const lp = (octets) => [...new Utils.Writer().writeUInt32BE(octets.length).toArray(), ...octets];
const data = JSON.stringify({ t: 21.5, site: "roof", at: "2026-01-02T03:04:05Z" });

async function build(number) {
  const texts = ["weather-001", `p${number}`, "reading", "", "", "", "", ""].flatMap((text) => lp(utf8(text)));
  const commitment = Hash.sha256([...utf8("overlayd/packet/1\n"), ...Random(16), ...texts, ...Hash.sha256(utf8(data))]);
  const made = new Transaction();
  made.addInput({ sourceTransaction: source, sourceOutputIndex: 0, unlockingScriptTemplate: new P2PKH().unlock(key) });
  made.addOutput({ lockingScript: Script.fromHex(`006a086f7665726c617964010120${Utils.toHex(commitment)}`), satoshis: 0 });
  made.addOutput({ lockingScript: lock, change: true });
  await made.fee(new SatoshisPerKilobyte(100));
  await made.sign();
  return made.toHexEF();
}

const spent = () => { const used = process.cpuUsage(); return (used.user + used.system) / 1e6; };
await build(0);
const began = spent();
let count = 0;
while (!count || spent() - began < Number(seconds)) { await build(count); count += 1; }
console.log(JSON.stringify({ rate: count / (spent() - began) }));
