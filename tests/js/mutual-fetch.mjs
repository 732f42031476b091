// Asks a node through AuthFetch of @bsv/sdk: mutual authentication, every answer verified by the client itself.
// Reads questions from standard input, one a line: {"method", "path", "headers", "text" | "base64"}; prints answers.
// Arguments: the node's URL, the client's private key in hex.
import readline from 'node:readline'
import { AuthFetch, PrivateKey, ProtoWallet } from '@bsv/sdk'

const [url, secret] = process.argv.slice(2)
const client = new AuthFetch(new ProtoWallet(PrivateKey.fromHex(secret)))

// The library writes every object as JSON, octets too, although it knows better further down.
const normalize = client.normalizeBodyToNumberArray.bind(client)
client.normalizeBodyToNumberArray = async body => body instanceof Uint8Array ? Array.from(body) : await normalize(body)

for await (const line of readline.createInterface({ input: process.stdin })) {
  if (!line) continue
  const { method, path, headers, text, base64 } = JSON.parse(line)
  const body = base64 === undefined ? text : new Uint8Array(Buffer.from(base64, 'base64'))
  try {
    const answer = await client.fetch(url + path, { method, headers, body, retryCounter: 2 })
    const key = answer.headers.get('x-bsv-auth-identity-key')
    console.log(JSON.stringify({ status: answer.status, key, text: await answer.text() }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message) }))
  }
}
process.exit(0)
