// Reads COUNT packets from an SSE stream with the `eventsource` package, the way a browser would,
// and prints one JSON line per event. Usage: node eventsource-read.mjs URL COUNT [LAST_EVENT_ID]
import { EventSource } from 'eventsource'

const [url, count, lastEventId] = process.argv.slice(2)
let seen = 0
const source = new EventSource(url, {
  fetch: (input, init) => {
    const headers = { ...init.headers }
    if (lastEventId && !headers['Last-Event-ID']) headers['Last-Event-ID'] = lastEventId
    return fetch(input, { ...init, headers })
  },
})
source.onopen = () => console.log(JSON.stringify({ event: 'open' }))
source.addEventListener('packet', (event) => {
  console.log(JSON.stringify({ event: 'packet', id: event.lastEventId, data: JSON.parse(event.data) }))
  if (++seen === Number(count)) {
    source.close()
    process.exit(0)
  }
})
setTimeout(() => process.exit(3), 20_000)
