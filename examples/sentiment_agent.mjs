// An agent that fetches posts, scores how they feel with the AFINN lexicon, and replies with the score.
//
//     npm install sentiment
//     node examples/sentiment_agent.mjs http://127.0.0.1:7878 posts moods
//
// A post is a packet whose data is a text, or an object with a member `text`. The agent makes its subscription itself
// the first time; started several times, the processes share the work. OVERLAYD_KEY: a key with the scopes agent,
// subscribe, publish and manage, where the node wants one.

import { createRequire } from "node:module";

const Sentiment = createRequire(process.env.AGENT_MODULES ?? import.meta.url)("sentiment");
const [url, posts, moods, count = "0"] = process.argv.slice(2);
const name = `sentiment-of-${posts}-js`;
const analyzer = new Sentiment();

async function ask(method, path, body) {
  const headers = { "content-type": "application/json" };
  if (process.env.OVERLAYD_KEY) headers.authorization = `Bearer ${process.env.OVERLAYD_KEY}`;
  const response = await fetch(url + path, { method, headers, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok && response.status !== 409) throw new Error(`${path}: ${answer.code}: ${answer.detail}`);
  return answer;
}

function replyTo(packet) {
  const data = packet.data_payload;
  const text = typeof data === "string" ? data : data?.text;
  if (typeof text !== "string") return undefined;
  const { comparative: score } = analyzer.analyze(text);
  const mood = score > 0 ? "good" : score < 0 ? "bad" : "neutral";
  const reply = { type: "sentiment", key: packet.packet_id, data: { post: packet.packet_id, score, mood } };
  console.log(`${packet.stream_id} ${packet.packet_sequence}: ${mood} (${score})`);
  return { packets: [reply] };
}

await ask("PUT", `/v1/streams/${moods}`, { title: `How ${posts} feel` });
const agent = { attach: "pull", output: moods, runs_per_hour: 10000 };
await ask("POST", "/v1/subscriptions", { name, kind: "agent", streams: [posts], from: "beginning", agent });
let scored = 0;
while (count === "0" || scored < Number(count)) {
  const { messages } = await ask("POST", `/v1/subscriptions/${name}/fetch`, { max: 10, wait: "30s" });
  for (const message of messages) {
    const reply = message.type === "packet" ? replyTo(message.packet) : undefined;
    await ask("POST", `/v1/subscriptions/${name}/ack`, { leases: [message.lease], reply });
    scored += 1;
  }
}
