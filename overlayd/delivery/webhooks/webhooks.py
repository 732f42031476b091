"""Everything about webhooks that the daemon puts together and the subscriptions are given."""

from overlayd.delivery.webhooks import header_values
from overlayd.delivery.webhooks.definition import WebhookJudge
from overlayd.delivery.webhooks.header_values import HeaderValues
from overlayd.delivery.webhooks.outlet import WebhookOutlet
from overlayd.delivery.webhooks.secrets import PURPOSE, SecretKeeper
from overlayd.delivery.webhooks.settings import WebhookSettings
from overlayd.model.clock import Clock, Entropy
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.traces import SpanBook
from overlayd.outbound import Outbound
from overlayd.storage import Log
from overlayd.storage.sealing import Sealer


class Webhooks:
    """`judge` checks definitions, `secrets` keeps what signs them, `headers` the values of their headers, `outlet` makes attempts."""

    def __init__(
        self, log: Log, outbound: Outbound, settings: WebhookSettings, *, sealing_key: bytes, limits: Limits,
        clock: Clock, entropy: Entropy, metrics: Metrics, spans: SpanBook | None = None,
    ) -> None:  # fmt: skip
        self.judge = WebhookJudge(limits, outbound.policy, metrics)
        self.secrets = SecretKeeper(
            log, Sealer(sealing_key, PURPOSE, entropy), limits=limits, grace_s=float(settings.secret_grace),
            clock=clock, entropy=entropy, metrics=metrics,
        )  # fmt: skip
        self.headers = HeaderValues(log, Sealer(sealing_key, header_values.PURPOSE, entropy))
        self.outlet = WebhookOutlet(outbound, self.secrets, limits=limits, clock=clock, metrics=metrics, spans=spans)
