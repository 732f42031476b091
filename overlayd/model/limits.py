"""Every limit of the node: table `[limits]`. Each has a default, a metric for "hit" and a test that hits it.

`limits_hits_total{limit="<name>"}` counts the hits (metrics.py).
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from overlayd.model.units import Duration, Size

HOPS_MAX = 8
"""How often in a row a packet may be made from another one: agents' replies and all else. The log's word, no setting."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Named bounds on every queue, body, count, time and rate."""

    # Requests
    head_bytes: Annotated[Size, Meta(description="Request line and headers together")] = Size(16 << 10)
    head_timeout: Annotated[Duration, Meta(description="From a connection's first byte to the end of a head")] = (
        Duration(10)
    )
    handshake_timeout: Annotated[
        Duration,
        Meta(description="A balancer's PROXY header and the TLS handshake together, from the connection's begin"),
    ] = Duration(10)
    handshake_threads: Annotated[
        int, Meta(ge=1, le=16, description="Threads that do the arithmetic of TLS handshakes; each can fill a core")
    ] = 1
    opening_max: Annotated[
        int, Meta(ge=1, description="Connections before or in their handshake; with more, the longest idle one is cut")
    ] = 1024
    proxy_header_bytes: Annotated[Size, Meta(description="A balancer's PROXY protocol header")] = Size(2 << 10)
    keep_alive_timeout: Annotated[Duration, Meta(description="An idle connection is closed after it")] = Duration(75)
    head_lines: Annotated[int, Meta(ge=1, description="Header lines of one request")] = 100
    requests_per_connection: Annotated[int, Meta(ge=1, description="Requests after which a connection is closed")] = (
        100_000
    )
    body_bytes: Annotated[Size, Meta(description="A request body that is taken whole, inflated")] = Size(64 << 20)
    upload_bytes: Annotated[Size, Meta(description="A streamed NDJSON body, inflated")] = Size(64 << 30)
    bodies_in_flight_bytes: Annotated[Size, Meta(description="All bodies being read or waiting for their commit")] = (
        Size(256 << 20)
    )
    body_rate_min: Annotated[Size, Meta(description="Bytes a second below which a body is given up, after 10 s")] = (
        Size(128)
    )
    stall_timeout: Annotated[Duration, Meta(description="A peer that takes or sends no byte for so long is cut")] = (
        Duration(30)
    )
    other_lane_concurrency: Annotated[int, Meta(ge=1, description="Quart requests that run at the same time")] = 2
    other_lane_queue: Annotated[int, Meta(ge=1, description="Quart requests that may wait for a place")] = 512
    wait_max: Annotated[Duration, Meta(description="Longest hold of a long-poll")] = Duration(55)

    # The process
    memory_bytes: Annotated[
        Size,
        Meta(
            description="Memory from which new sessions, readers behind and packets are held off in turn; 0B: 3/4 of what there is"
        ),
    ] = Size(0)

    # Packets
    packet_bytes: Annotated[Size, Meta(description="One packet object")] = Size(1 << 20)
    batch_packets_max: Annotated[int, Meta(ge=1, description="Packets in one array or CloudEvents batch")] = 10_000
    id_chars: Annotated[int, Meta(ge=1, le=1024, description="Characters of a packet's id, type and key")] = 128
    source_chars: Annotated[int, Meta(ge=1, description="Characters of a packet's source")] = 1024
    topics_max: Annotated[int, Meta(ge=0, description="Topics of one packet")] = 32
    metadata_bytes: Annotated[Size, Meta(description="A packet's metadata")] = Size(16 << 10)
    json_depth_max: Annotated[int, Meta(ge=1, le=200, description="Nesting of a packet's JSON")] = 64
    ndjson_group_packets: Annotated[
        int, Meta(ge=1, description="NDJSON lines that are committed together; more make others wait longer")
    ] = 200
    ndjson_receipts_max: Annotated[int, Meta(ge=0, description="NDJSON lines up to which receipts are listed")] = 1000
    errors_max: Annotated[int, Meta(ge=1, description="Errors listed in one answer")] = 100

    # Streams
    streams_max: Annotated[int, Meta(ge=1, description="Streams on the node")] = 100_000
    holds_per_stream: Annotated[int, Meta(ge=1, description="Legal holds on one stream")] = 1000
    auto_create_per_minute: Annotated[int, Meta(ge=0, description="Streams that publishing may create a minute")] = 600
    definition_bytes: Annotated[Size, Meta(description="A stream's definition")] = Size(256 << 10)
    schema_pattern_chars: Annotated[int, Meta(ge=1, description="Characters of one pattern in a schema")] = 512
    schema_pattern_repeats: Annotated[
        int, Meta(ge=1, description="What counted repetitions of a schema's pattern may multiply to")
    ] = 1000
    schema_steps: Annotated[
        int, Meta(ge=1, description="Foreseen steps (about 10 ns each) of judging one packet by its schema")
    ] = 5_000_000
    schemas_compiled: Annotated[int, Meta(ge=1, description="Compiled schemas kept in memory")] = 256

    # People
    erase_packets_max: Annotated[int, Meta(ge=1, description="Packets that one request erases")] = 100_000
    subject_packets_max: Annotated[
        int,
        Meta(ge=1, description="Packets about one subject that one request counts; the answer says if there are more"),
    ] = 1_000_000
    consents_max: Annotated[int, Meta(ge=1, description="Records of consent on the node")] = 1_000_000
    consents_cached: Annotated[int, Meta(ge=1, description="Records of consent kept in memory")] = 65_536

    # Intake and storage
    intake_packets: Annotated[int, Meta(ge=1, description="Packets waiting for the writer")] = 50_000
    intake_bytes: Annotated[Size, Meta(description="Bytes waiting for the writer")] = Size(128 << 20)
    admit_timeout: Annotated[Duration, Meta(description="Longest wait for a place in the intake")] = Duration(5)
    group_packets: Annotated[int, Meta(ge=1, description="Packets in one commit")] = 5000
    group_bytes: Annotated[Size, Meta(description="Bytes in one commit")] = Size(16 << 20)
    page_entries: Annotated[int, Meta(ge=1, description="Entries read from the log at once")] = 200
    page_bytes: Annotated[Size, Meta(description="Bytes read from the log at once")] = Size(1 << 20)
    readers: Annotated[int, Meta(ge=1, le=64, description="Read connections to the database")] = 4
    read_timeout: Annotated[Duration, Meta(description="One read of the database")] = Duration(30)
    tail_bytes: Annotated[Size, Meta(description="Newest entries kept in memory for live readers")] = Size(16 << 20)
    scan_max: Annotated[int, Meta(ge=1, description="Entries that one read request looks at")] = 100_000
    read_packets_max: Annotated[int, Meta(ge=1, description="Packets in one read answer")] = 1000

    # Outbound
    outbound_requests: Annotated[int, Meta(ge=1, description="Calls to other servers at the same time")] = 2048
    outbound_requests_per_host: Annotated[
        int, Meta(ge=1, description="Calls to one host and port at the same time; fewer than in all")
    ] = 512
    outbound_idle_connections: Annotated[int, Meta(ge=0, description="Connections kept open for the next call")] = 1024
    outbound_idle_per_host: Annotated[int, Meta(ge=0, description="The same to one host and port")] = 256
    outbound_idle_timeout: Annotated[
        Duration, Meta(description="A kept connection that nobody used for so long is closed")
    ] = Duration(30)
    outbound_lookups: Annotated[
        int, Meta(ge=1, le=256, description="Name look-ups at the same time, each a thread")
    ] = 16
    outbound_lookup_timeout: Annotated[Duration, Meta(description="Looking up one name")] = Duration(5)
    outbound_names: Annotated[int, Meta(ge=0, description="Names whose addresses are remembered")] = 4096
    outbound_name_age: Annotated[Duration, Meta(description="Addresses are remembered for so long; 0s: never")] = (
        Duration(30)
    )
    outbound_addresses: Annotated[int, Meta(ge=1, le=64, description="Addresses of a name that are tried in turn")] = 8
    outbound_connect_timeout: Annotated[Duration, Meta(description="Connecting to another server")] = Duration(5)
    outbound_tls_timeout: Annotated[Duration, Meta(description="The TLS handshake with another server")] = Duration(5)
    outbound_head_bytes: Annotated[Size, Meta(description="Status line and headers of another server's answer")] = Size(
        32 << 10
    )
    outbound_head_lines: Annotated[int, Meta(ge=1, description="Header lines of another server's answer")] = 200
    outbound_body_timeout: Annotated[
        Duration, Meta(description="An answer's body whose status alone counts may take so long; then it is cut")
    ] = Duration(2)

    # Webhooks
    webhook_body_bytes: Annotated[Size, Meta(description="Body of one webhook request")] = Size(8 << 20)
    webhook_bodies_bytes: Annotated[
        Size, Meta(description="Webhook bodies over 64KiB that are being sent, all together; further ones wait")
    ] = Size(256 << 20)
    webhook_response_bytes: Annotated[
        Size, Meta(description="Of a webhook's answer so much is kept with the attempt")
    ] = Size(4 << 10)
    webhook_retry_after: Annotated[
        Duration, Meta(description="Longest pause that a webhook's Retry-After can ask for")
    ] = Duration(86_400)
    webhook_headers: Annotated[int, Meta(ge=0, le=100, description="Further headers of a webhook")] = 32
    webhook_header_bytes: Annotated[Size, Meta(description="Their names and values together")] = Size(8 << 10)
    webhook_secrets: Annotated[
        int, Meta(ge=2, le=16, description="Secrets of a webhook that are valid at the same time, while rotating")
    ] = 4
    template_placeholders: Annotated[int, Meta(ge=1, description="Placeholders in one template")] = 256

    # Live
    sessions_max: Annotated[int, Meta(ge=1, description="Live sessions in all")] = 10_000
    sessions_per_stream: Annotated[int, Meta(ge=1, description="Live sessions naming the same stream or pattern")] = (
        10_000
    )
    sessions_per_address: Annotated[
        int, Meta(ge=1, description="Live sessions of one address (Unix peers: one uid); fewer than in all")
    ] = 9_500
    sessions_per_principal: Annotated[
        int, Meta(ge=1, description="Live sessions of one principal; fewer than in all")
    ] = 9_500
    connections_max: Annotated[int, Meta(ge=1, description="Open connections in all")] = 20_000
    connections_per_address: Annotated[
        int, Meta(ge=1, description="Open connections of one address; fewer than in all")
    ] = 15_000
    subscriptions_per_session: Annotated[int, Meta(ge=1, description="Subscriptions on one WebSocket")] = 64
    query_terms: Annotated[int, Meta(ge=1, description="Streams, topics, types or keys named in one live query")] = 64
    message_bytes: Annotated[Size, Meta(description="One WebSocket message from a client")] = Size(1 << 20)
    unread_messages: Annotated[int, Meta(ge=1, description="Client messages waiting to be looked at")] = 64
    unread_bytes: Annotated[
        Size, Meta(description="Bytes of one WebSocket's messages that wait, or whose publishing isn't answered yet")
    ] = Size(4 << 20)
    sockets_unread_bytes: Annotated[Size, Meta(description="The same of all WebSockets together")] = Size(128 << 20)
    publishes_in_flight: Annotated[int, Meta(ge=1, description="WebSocket publishes awaiting their receipt")] = 64
    heartbeat_min: Annotated[Duration, Meta(description="Shortest heartbeat that may be asked for")] = Duration(1)
    heartbeat_max: Annotated[Duration, Meta(description="Longest heartbeat that may be asked for")] = Duration(55)
    pong_timeout: Annotated[Duration, Meta(description="A WebSocket peer must answer a ping within it")] = Duration(20)
    drain_timeout: Annotated[Duration, Meta(description="Shutdown waits so long for sessions and requests to end")] = (
        Duration(5)
    )

    # Filters
    filter_bytes: Annotated[Size, Meta(description="A CEL expression")] = Size(2 << 10)
    filter_pattern_chars: Annotated[int, Meta(ge=1, description="A literal pattern in matches()")] = 512
    filter_pattern_repeats: Annotated[
        int, Meta(ge=1, description="What counted repetitions of a filter's pattern may multiply to")
    ] = 100
    filter_list_items: Annotated[int, Meta(ge=1, description="Items of a list that a filter sees")] = 1000
    filter_inline_bytes: Annotated[Size, Meta(description="Packets above it are filtered in a thread")] = Size(64 << 10)
    filter_mean_us: Annotated[
        int, Meta(ge=1, description="Mean microseconds above which a filter runs in a thread")
    ] = 200
    filter_timeout: Annotated[
        Duration, Meta(description="Processor time of one evaluation; longer counts as an overrun")
    ] = Duration(0.05)
    filter_overruns: Annotated[int, Meta(ge=1, description="Overruns after which a filter is disabled")] = 3
    filters_per_principal: Annotated[int, Meta(ge=1, description="Distinct filters of one principal")] = 20
    filters_max: Annotated[int, Meta(ge=1, description="Distinct filters on the node")] = 1000

    # Durable subscriptions
    subscriptions_max: Annotated[int, Meta(ge=1, description="Durable subscriptions on the node")] = 20_000
    subscriptions_per_principal: Annotated[int, Meta(ge=1, description="Durable subscriptions of one principal")] = (
        10_000
    )
    outstanding_max: Annotated[
        int, Meta(ge=1, description="Packets of one subscription above its floor; more wait in the log")
    ] = 10_000
    deliveries_in_flight: Annotated[
        int, Meta(ge=1, description="Deliveries in flight beyond one for each subscription")
    ] = 1000
    troubled_attempts_per_s: Annotated[
        int,
        Meta(ge=1, description="Attempts a second at endpoints that failed three times in a row, all of them together"),
    ] = 100
    dead_letters_per_subscription: Annotated[
        int, Meta(ge=1, description="Dead letters of one subscription; the oldest go first")
    ] = 10_000
    fetch_max: Annotated[int, Meta(ge=1, description="Messages that one fetch leases")] = 1000
    leases_per_request: Annotated[int, Meta(ge=1, description="Leases named in one ack, nack or extend")] = 10_000

    # Agents
    agent_reply_bytes: Annotated[Size, Meta(description="What an agent replies to one delivery")] = Size(1 << 20)
    agent_reply_packets: Annotated[int, Meta(ge=1, description="Packets in one reply of an agent")] = 100
    agent_runs_per_hour: Annotated[
        int, Meta(ge=1, description="Deliveries to one agent in an hour, whatever its definition allows")
    ] = 100_000
    agent_runs_per_day: Annotated[
        int, Meta(ge=1, description="Deliveries to one agent in a day, whatever its definition allows")
    ] = 1_000_000
    agent_bytes_per_day: Annotated[
        Size,
        Meta(description="Payload that one agent is given and replies with in a day, whatever its definition allows"),
    ] = Size(10 << 30)
