"""When each alert fires, and when it doesn't: series of a node that is ill, and of one that is well.

Values are promtool's notation, a sample a minute: `0+5x60` is 0, 5, 10 … after 60 minutes. `{}` stands for the labels of
the node. `late`: the minute at which the ill node's alert is on; `early`: one at which it isn't yet.
"""

import msgspec


class Case(msgspec.Struct, frozen=True):
    """One alert. Series are names with labels, and values."""

    ill: dict[str, str]
    well: dict[str, str]
    late: int = 40
    early: int | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)


INFO = {"overlayd_build_info{}": "1x3000"}


def simple(name: str, ill: str, well: str, **times: int) -> Case:
    """One series decides."""
    return Case({name: ill}, {name: well}, **times)  # type: ignore[arg-type]


def buckets(name: str, values: dict[str, str]) -> dict[str, str]:
    """A histogram's buckets."""
    return {f'{name}_bucket{{le="{bound}",}}': value for bound, value in values.items()}


CASES: dict[str, Case] = {
    "OverlaydDown": simple("up{}", "0x60", "1x60", late=10, early=1),
    "OverlaydRestarting": Case(
        {"process_start_time_seconds{}": "1 1 2 2 3 3 4 4x60", **INFO},
        {"process_start_time_seconds{}": "1x10 2x60", **INFO}, late=15, early=3,
    ),
    "OverlaydRequestFaults": Case(
        {'overlayd_http_requests_total{status="500",}': "0+2x60", 'overlayd_http_requests_total{status="200",}': "0+98x60"},
        {
            'overlayd_http_requests_total{status="500",}': "0+1x60",
            'overlayd_http_requests_total{status="503",}': "0+50x60",
            'overlayd_http_requests_total{status="200",}': "0+190x60",
        },
        early=8,
    ),
    "OverlaydTaskCrashes": Case(
        {'overlayd_live_crashes_total{task="x",}': "_x30 1x60", "overlayd_net_connection_crashes_total{}": "0x90"},
        {"overlayd_net_connection_crashes_total{}": "3x90", "overlayd_delivery_crashes_total{}": "0x90",
         'overlayd_privacy_crashes_total{task="y",}': "2x90"}, late=40, early=25,
    ),
    "OverlaydMemoryShort": simple("overlayd_memory_shed{}", "2x60", "0x60", early=3),
    "OverlaydDescriptorsShort": Case(
        {"process_open_fds{}": "900x60", "process_max_fds{}": "1024x60", **INFO},
        {"process_open_fds{}": "800x60", "process_max_fds{}": "1024x60", **INFO}, early=3,
    ),
    "OverlaydCertificateExpires": Case(
        {'overlayd_tls_certificate_expiry_timestamp_seconds{listener="l",}': "1000000x60"},
        {'overlayd_tls_certificate_expiry_timestamp_seconds{listener="l",}': "2000000x60"}, labels={"listener": "l"},
    ),
    "OverlaydReloadFailed": Case(
        {'overlayd_config_reloads_total{result="failed",}': "_x70 1x60"},
        {'overlayd_config_reloads_total{result="failed",}': "1x150", 'overlayd_config_reloads_total{result="ok",}': "0+1x150"},
        late=80, early=65, labels={"result": "failed"},
    ),
    "OverlaydConfigWaiting": simple("overlayd_config_waiting{}", "1x3000", "0x3000", late=1500, early=1300),
    "OverlaydStorageFull": simple("overlayd_storage_full{}", "1x60", "0x60", late=1),
    "OverlaydDiskLow": simple("overlayd_disk_low{}", "1x60", "0x60", early=3),
    "OverlaydDiskFillsUp": simple(
        "overlayd_disk_free_bytes{}", "1000000-1000x600", "1000000-100x600", late=480, early=30
    ),
    "OverlaydDamaged": simple("overlayd_damaged_entries{}", "1x60", "0x60", late=1),
    "OverlaydMended": simple("overlayd_mended{}", "1x60", "0x60", late=1),
    "OverlaydIntakeFull": Case(
        {'overlayd_limit_hits_total{limit="intake_packets",}': "0+1x60"},
        {'overlayd_limit_hits_total{limit="intake_packets",}': "5x60", 'overlayd_limit_hits_total{limit="packet_bytes",}': "0+9x60"},
        early=4,
    ),
    "OverlaydCommitsSlow": Case(
        buckets("overlayd_commit_seconds", {"0.1": "0+90x60", "0.5": "0+90x60", "1.0": "0+100x60", "+Inf": "0+100x60"}),
        buckets("overlayd_commit_seconds", {"0.1": "0+100x60", "0.5": "0+100x60", "1.0": "0+100x60", "+Inf": "0+100x60"}),
        early=5,
    ),
    "OverlaydWalLarge": simple("overlayd_wal_bytes{}", "300000000x60", "60000000x60", early=10),
    "OverlaydCheckpointStuck": Case(
        {"overlayd_entries{}": "100+10x60", "overlayd_checkpoint_size{}": "90x60"},
        {"overlayd_entries{}": "100+10x60", "overlayd_checkpoint_size{}": "90+10x60"}, late=40, early=10,
    ),
    "OverlaydClockUntrusted": simple("overlayd_retention_paused{}", "1x60", "0x60", early=10),
    "OverlaydBackupFailed": Case(
        {'overlayd_backups_total{result="failed",}': "_x1500 1x60", 'overlayd_backups_total{result="ok",}': "0+1x1600"},
        {'overlayd_backups_total{result="failed",}': "1x3000", 'overlayd_backups_total{result="ok",}': "0+1x3000"},
        late=1520, early=1490,
    ),
    "OverlaydBackupOld": simple("overlayd_backup_last_seconds{}", "1x3100", "0x3100", late=3000, early=2900),
    "OverlaydErasureOpen": simple("overlayd_erasures_open{}", "1x120", "0x120", late=70, early=50),
    "OverlaydAuditDropped": Case(
        {'overlayd_audit_records_total{outcome="dropped",}': "_x20 3x60"},
        {'overlayd_audit_records_total{outcome="dropped",}': "3x90", 'overlayd_audit_records_total{outcome="written",}': "0+5x90"},
        late=25, early=18,
    ),
    "OverlaydCountsNotWritten": Case(
        {"overlayd_usage_flush_failures_total{}": "0x90", "overlayd_statistics_flush_failures_total{}": "0+1x90"},
        {"overlayd_usage_flush_failures_total{}": "4x90", "overlayd_statistics_flush_failures_total{}": "0x90"},
        late=40, early=10,
    ),
    "OverlaydPacketsRejected": Case(
        {'overlayd_packets_rejected_total{code="packet.invalid",}': "0+20x60", "overlayd_packets_published_total{}": "0+100x60"},
        {'overlayd_packets_rejected_total{code="packet.invalid",}': "0+10x60", "overlayd_packets_published_total{}": "0+100x60"},
        early=12,
    ),
    "OverlaydCredentialsRefused": Case(
        {'overlayd_access_claims_total{scheme="key",outcome="refused",}': "0+120x60"},
        {'overlayd_access_claims_total{scheme="key",outcome="refused",}': "0+30x60",
         'overlayd_access_claims_total{scheme="key",outcome="accepted",}': "0+900x60"}, early=8,
    ),
    "OverlaydSessionsRefused": Case(
        {'overlayd_limit_hits_total{limit="sessions_max",}': "0x10 1+1x60"},
        {'overlayd_limit_hits_total{limit="sessions_max",}': "7x90", 'overlayd_limit_hits_total{limit="packet_bytes",}': "0+1x90"},
        late=20, early=9,
    ),
    "OverlaydSubscriptionLags": simple(
        "overlayd_subscription_lag_entries{}", "20000+10x120", "90000-900x95", late=70, early=20
    ),
    "OverlaydDeadLetters": simple("overlayd_dead_letters_made_total{}", "0x10 1x60", "4x90", late=20, early=9),
    "OverlaydSubscriptionDisabled": simple("overlayd_subscriptions_disabled_total{}", "0x10 1x60", "2x90", late=20, early=9),
    "OverlaydChainStale": Case(
        {"overlayd_chain_tip_age_seconds{}": "9000+60x60", 'overlayd_chain_pending_transactions{older_than="3600",}': "3x60"},
        {"overlayd_chain_tip_age_seconds{}": "9000+60x60", 'overlayd_chain_pending_transactions{older_than="3600",}': "0x60",
         'overlayd_chain_pending_transactions{older_than="60",}': "3x60"}, early=10,
    ),
    "OverlaydChainSourceFails": Case(
        {'overlayd_chain_source_errors_total{source="s",reason="timeout",}': "0+6x60",
         'overlayd_chain_source_requests_total{source="s",call="tip",}': "0+10x60"},
        {'overlayd_chain_source_errors_total{source="s",reason="timeout",}': "0+4x60",
         'overlayd_chain_source_requests_total{source="s",call="tip",}': "0+10x60"}, early=10, labels={"source": "s"},
    ),
    "OverlaydChainTasksRestart": Case(
        {'overlayd_chain_restarts_total{task="mine",}': "_x20 1x60"}, {'overlayd_chain_restarts_total{task="mine",}': "1x90"},
        late=25, early=18, labels={"task": "mine"},
    ),
    "OverlaydUnfunded": simple("overlayd_chain_unfunded_items{}", "5x60", "0x60", late=35, early=20),
    "OverlaydWalletLow": simple("overlayd_wallet_low{}", "1x60", "0x60", early=3),
    "OverlaydDeepReorg": Case(
        {"overlayd_chain_reorg_blocks_count{}": "0x10 1x60", 'overlayd_chain_reorg_blocks_bucket{le="2.0",}': "0x90"},
        {"overlayd_chain_reorg_blocks_count{}": "0x10 1x60", 'overlayd_chain_reorg_blocks_bucket{le="2.0",}': "0x10 1x60"},
        late=20, early=9,
    ),
}  # fmt: skip
