"""Tables of the session read model. Everything in them comes from the log and can be made from it again."""

from overlayd.storage.migrations import Feature

_TABLES = """
CREATE TABLE agentpipe_state (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE agentpipe_session (
    id TEXT PRIMARY KEY,
    stream TEXT NOT NULL,
    stream_hash BLOB NOT NULL,
    name TEXT NOT NULL DEFAULT '',
    mode TEXT NOT NULL DEFAULT '',
    status TEXT NOT NULL DEFAULT 'ACTIVE',
    source TEXT NOT NULL DEFAULT 'cli-stream',
    prompt TEXT NOT NULL DEFAULT '',
    started_us INTEGER NOT NULL DEFAULT 0,
    completed_us INTEGER,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    total_messages INTEGER NOT NULL DEFAULT 0,
    total_tokens INTEGER NOT NULL DEFAULT 0,
    total_cost INTEGER NOT NULL DEFAULT 0,      -- in 1e-12 dollars, as all costs here
    total_duration INTEGER NOT NULL DEFAULT 0,  -- milliseconds
    messages INTEGER NOT NULL DEFAULT 0,        -- these four are sums over agentpipe_message
    tokens INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0,
    duration INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    original_id TEXT NOT NULL DEFAULT '',
    started BLOB,                               -- JSON of the facts that count
    ended BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX agentpipe_session_created ON agentpipe_session (created_us, id);
CREATE INDEX agentpipe_session_status ON agentpipe_session (status, created_us);
CREATE INDEX agentpipe_session_stream ON agentpipe_session (stream_hash);

CREATE TABLE agentpipe_fact (
    session TEXT NOT NULL,
    kind TEXT NOT NULL,
    offset INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (session, kind, offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE agentpipe_agent (
    session TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    is_declared INTEGER NOT NULL,  -- 1: by the session's beginning; 0: by a message, the earliest that names it
    place INTEGER NOT NULL,        -- declared: its number; else the time of that message
    message TEXT NOT NULL DEFAULT '',
    agent_type TEXT NOT NULL,
    agent_name TEXT NOT NULL,
    model TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (session, agent_id, is_declared)
) STRICT, WITHOUT ROWID;
CREATE INDEX agentpipe_agent_type ON agentpipe_agent (agent_type, session);

CREATE TABLE agentpipe_message (
    number INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    id TEXT NOT NULL,
    offset INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    time TEXT NOT NULL,
    sequence REAL,
    turn REAL,
    agent_id TEXT NOT NULL,
    agent_name TEXT NOT NULL,
    agent_type TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    model TEXT NOT NULL,
    tokens REAL,
    input_tokens REAL,
    output_tokens REAL,
    cost REAL,
    duration_ms REAL,
    UNIQUE (session, id)
) STRICT;
CREATE INDEX agentpipe_message_order ON agentpipe_message (session, time_us);
CREATE INDEX agentpipe_message_time ON agentpipe_message (time_us);

CREATE VIRTUAL TABLE agentpipe_text USING fts5 (content, content='agentpipe_message', content_rowid='number');
"""

AGENTPIPE_FEATURE = Feature("agentpipe", (_TABLES,))
TABLES = ("agentpipe_session", "agentpipe_fact", "agentpipe_agent", "agentpipe_message")
