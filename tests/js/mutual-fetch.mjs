// Asks a node through AuthFetch of @bsv/sdk: mutual authentication, every answer verified by the client itself.
// Reads questions from standard input, one a line: {"method", "path", "headers", "text" | "base64"}; prints answers.
// Arguments: the node's URL, the client's private key in hex.
import readline from 'node:readline'
import { AuthFetch, PrivateKey, ProtoWallet } from '@bsv/sdk'

const [url, secret] = process.argv.slice(2)
const client = new AuthFetch(new ProtoWallet(PrivateKey.fromHex(secret)))

for await (const line of readline.createInterface({ input: process.stdin })) {
  if (!line) continue
  const { method, path, headers, text, base64 } = JSON.parse(line)
  const body = base64 === undefined ? text : new Uint8Array(Buffer.from(base64, 'base64'))
  // AuthFetch takes octets as an array of numbers; other objects it would write as JSON.
  const given = body instanceof Uint8Array ? Array.from(body) : body
  try {
    const answer = await client.fetch(url + path, { method, headers, body: given, retryCounter: 2 })
    console.log(JSON.stringify({ status: answer.status, key: answer.headers.get('x-bsv-auth-identity-key'), text: await answer.text() }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message) }))
  }
}
process.exit(0)
