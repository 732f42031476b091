"""An agent that fetches posts, scores how they feel with VADER's lexicon, and replies with the score.

    pip install vaderSentiment
    python examples/sentiment_agent.py http://127.0.0.1:7878 posts moods

A post is a packet whose data is a text, or an object with a member `text`. The agent makes its subscription itself the
first time; started several times, the processes share the work.
"""

import sys
from typing import Any

import msgspec
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from overlayd.client import SyncClient
from overlayd.model.errors import SubscriptionConflict

WAIT_S = 30.0
MAX = 10


def main(url: str, posts: str, moods: str, count: int = 0) -> None:
    """Goes on for ever, or until `count` posts were scored."""
    analyzer = SentimentIntensityAnalyzer()
    name = f"sentiment-of-{posts}"
    with SyncClient(url) as client:
        make_agent(client, name, posts, moods)
        scored = 0
        while not count or scored < count:
            fetched = client.subscriptions.fetch(name, MAX, wait_s=WAIT_S)
            for message in fetched.messages:
                reply = reply_to(analyzer, message.packet) if message.type == "packet" else None
                client.subscriptions.ack(name, [message.lease], reply=reply)
                scored += 1


def make_agent(client: SyncClient, name: str, posts: str, moods: str) -> None:
    """The subscription and the stream that it replies to, unless they are there."""
    client.define(moods, {"title": f"How {posts} feel"})
    agent = {"attach": "pull", "output": moods, "runs_per_hour": 10_000}
    try:
        client.subscriptions.create(
            {"name": name, "kind": "agent", "streams": [posts], "from": "beginning", "agent": agent}
        )
    except SubscriptionConflict:
        print(f"{name} is there already")


def reply_to(analyzer: SentimentIntensityAnalyzer, packet: Any) -> dict[str, Any] | None:
    """One packet with the score, from -1 (bad) to 1 (good); None for what holds no text."""
    data = msgspec.json.decode(packet.data_payload)
    text = data.get("text") if isinstance(data, dict) else data
    if not isinstance(text, str):
        return None
    score = analyzer.polarity_scores(text)["compound"]
    mood = "good" if score >= 0.05 else "bad" if score <= -0.05 else "neutral"
    print(f"{packet.stream_id} {packet.packet_sequence}: {mood} ({score})")
    return {
        "packets": [
            {
                "type": "sentiment",
                "key": packet.packet_id,
                "data": {"post": packet.packet_id, "score": score, "mood": mood},
            }
        ]
    }


if __name__ == "__main__":
    main(*sys.argv[1:4], *(int(word) for word in sys.argv[4:5]))
