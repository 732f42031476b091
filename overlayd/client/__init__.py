"""The Python client of an overlayd node (docs/client.md): `Client` on Trio, `SyncClient` for everybody else."""

from overlayd.client.async_client import Client
from overlayd.client.live import Live
from overlayd.client.producing import Prepared, Producer, coins_in, commitment_of_packet
from overlayd.client.publishing import PublishOutcome
from overlayd.client.purse import Coin, Purse
from overlayd.client.reading import verify_packet
from overlayd.client.retry import RetryPolicy
from overlayd.client.sync_client import SyncClient
from overlayd.client.tls_files import TlsFiles
from overlayd.client.trust import LogView

__all__ = [
    "Client", "Coin", "Live", "LogView", "Prepared", "Producer", "PublishOutcome", "Purse", "RetryPolicy", "SyncClient",
    "TlsFiles", "coins_in", "commitment_of_packet", "verify_packet",
]  # fmt: skip
