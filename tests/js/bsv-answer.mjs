// Answers questions about chain formats with @bsv/sdk: one JSON question a line on stdin, one answer a line on stdout.
// An answer is {"value": …}, or {"error": "…"} when the library refuses.
import { createInterface } from "node:readline";
import {
  Beef, Certificate, Hash, MerklePath, P2PKH, PrivateKey, ProtoWallet, PublicKey, PushDrop, Script, SignedMessage,
  Transaction, Utils,
} from "@bsv/sdk";

const { toArray, toHex } = Utils;
const tracker = (roots) => ({
  isValidRootForHeight: async (root, height) => roots[height] === root,
  currentHeight: async () => Math.max(...Object.keys(roots).map(Number)),
});

const answers = {
  transaction: ({ raw }) => {
    const tx = Transaction.fromHex(raw);
    return { txid: tx.id("hex"), raw: tx.toHex(), inputs: tx.inputs.length, outputs: tx.outputs.map((o) => o.satoshis) };
  },
  extended: ({ ef }) => Transaction.fromHexEF(ef).toHexEF(),
  root: ({ bump, txid }) => MerklePath.fromHex(bump).computeRoot(txid),
  merge: ({ bump, other }) => {
    const path = MerklePath.fromHex(bump);
    path.combine(MerklePath.fromHex(other));
    return path.toHex();
  },
  // Full SPV: scripts, amounts, and the roots that are given for heights.
  beef: async ({ beef, roots }) => {
    const tx = Transaction.fromBEEF(toArray(beef, "hex"));
    return { txid: tx.id("hex"), valid: await tx.verify(tracker(roots)), v1: toHex(tx.toBEEF()), ef: tx.toHexEF() };
  },
  atomic: async ({ beef, roots }) => {
    const tx = Transaction.fromAtomicBEEF(toArray(beef, "hex"));
    return { txid: tx.id("hex"), valid: await tx.verify(tracker(roots)), atomic: toHex(tx.toAtomicBEEF()) };
  },
  beefV2: ({ beef }) => toHex(Beef.fromString(beef, "hex").toBinary()),
  spend: async ({ key, parent, rate, data }) => {
    const secret = PrivateKey.fromHex(key);
    const tx = new Transaction();
    tx.addInput({
      sourceTransaction: Transaction.fromHex(parent), sourceOutputIndex: 0, unlockingScriptTemplate: new P2PKH().unlock(secret),
    });
    tx.addOutput({ lockingScript: Script.fromHex(data), satoshis: 0 });
    tx.addOutput({ lockingScript: new P2PKH().lock(secret.toAddress()), change: true });
    await tx.fee({ computeFee: async () => rate });
    await tx.sign();
    return { ef: tx.toHexEF(), txid: tx.id("hex") };
  },
  child: ({ key, other, invoice }) => ({
    secret: PrivateKey.fromHex(key).deriveChild(PublicKey.fromString(other), invoice).toHex().padStart(64, "0"),
    public: PublicKey.fromString(other).deriveChild(PrivateKey.fromHex(key), invoice).toString(),
  }),
  address: ({ key }) => ({
    address: PrivateKey.fromHex(key).toAddress(), test: PrivateKey.fromHex(key).toAddress("testnet"),
    wif: PrivateKey.fromHex(key).toWif(),
  }),
  signMessage: ({ message, key, verifier }) =>
    toHex(SignedMessage.sign(toArray(message, "hex"), PrivateKey.fromHex(key), verifier ? PublicKey.fromString(verifier) : undefined)),
  verifyMessage: ({ message, signature, verifier }) =>
    SignedMessage.verify(toArray(message, "hex"), toArray(signature, "hex"), verifier && PrivateKey.fromHex(verifier)),
  pushdrop: ({ script }) => {
    const { lockingPublicKey, fields } = PushDrop.decode(Script.fromHex(script));
    return { key: lockingPublicKey.toString(), fields: fields.map(toHex) };
  },
  certificate: async ({ binary }) => await Certificate.fromBinary(toArray(binary, "hex")).verify(),
  issue: async ({ certifier, subject, type, serial, fields }) => {
    const wallet = new ProtoWallet(PrivateKey.fromHex(certifier));
    const issuer = PrivateKey.fromHex(certifier).toPublicKey().toString();
    const certificate = new Certificate(type, serial, subject, issuer, `${"00".repeat(32)}.0`, fields);
    await certificate.sign(wallet);
    return toHex(certificate.toBinary(true));
  },
  sort: ({ names }) => names.sort((a, b) => a.localeCompare(b, "en")),
  hash160: ({ data }) => toHex(Hash.hash160(toArray(data, "hex"))),
};

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line);
  try {
    console.log(JSON.stringify({ value: (await answers[question.ask](question)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.message ?? error) }));
  }
}
