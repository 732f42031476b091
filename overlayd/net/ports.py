"""The node's ports: everything that `[listen]` says, checked before anything is opened, and what can be read anew."""

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from overlayd.access import AccessRules
from overlayd.access.certificates import CertificateScheme
from overlayd.access.networks import parse_networks
from overlayd.access.origin import parse_trusted
from overlayd.access.roles import RoleBook
from overlayd.access.settings import AccessSettings
from overlayd.model.clock import Clock
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.net.cors import parse_origins
from overlayd.net.exposure import Credentials, describe_exposure
from overlayd.net.listeners import Bound, open_listeners
from overlayd.net.peer_rules import peer_rules_of
from overlayd.net.settings import ListenSettings
from overlayd.net.tls import TlsEndpoints

_log = structlog.get_logger("net.ports")


class Ports:
    """Opens the listeners, and knows who gets in by them. One for the node."""

    def __init__(self, settings: ListenSettings, *, limits: Limits, clock: Clock, metrics: Metrics) -> None:
        """Reads certificates. Raises ConfigInvalid."""
        self._settings = settings
        self._limits = limits
        self._urls: list[str] = []
        self._endpoints = TlsEndpoints(settings.tls, clock=clock, metrics=metrics)
        self.credentials = Credentials()
        """By what clients can show who they are; whoever keeps credentials sets it before `open`, and when it changes."""

    def certificate_scheme(self, access: AccessSettings) -> CertificateScheme:
        """What the gate knows of client certificates. Raises ConfigInvalid, also for rules that no listener serves."""
        is_asked = any(listener.client_ca for listener in self._settings.tls)
        return CertificateScheme(access.certificates, RoleBook(access.roles), is_asked=is_asked)

    def check(self) -> None:
        """Whether everything that `[listen]` says can be understood. Raises ConfigInvalid."""
        self.rules(auto_create=False)
        for listener in (None, *self._settings.plain, *self._settings.tls):
            peer_rules_of(self._settings, listener)

    def rules(self, *, auto_create: bool) -> AccessRules:
        """What the settings say about requests. Raises ConfigInvalid."""
        settings = self._settings
        trusted, is_unix_trusted = parse_trusted(settings.trusted_proxies)
        return AccessRules(
            service_uid=os.geteuid(), hosts=frozenset(host.lower() for host in settings.hosts),
            origins=parse_origins(settings.origins), trusted=trusted, is_unix_trusted=is_unix_trusted,
            denied=parse_networks(settings.deny, "listen.deny"), insecure=settings.insecure, auto_create=auto_create,
        )  # fmt: skip

    def open(self, directory: Path) -> list[Bound]:
        """Every listener. Raises ConfigInvalid; then nothing stays open."""
        opened = open_listeners(
            self._settings, directory, self._limits, endpoints=self._endpoints, credentials=self.credentials
        )
        self._urls = [bound.url for bound in opened]
        _log.info("access", state=self.exposure())
        return opened

    def exposure(self) -> str:
        """Who gets in, in a line."""
        return describe_exposure(self._urls, self._settings, self.credentials)

    def reload(self) -> Sequence[str]:
        """Reads certificates, keys and authorities anew, all or none; the addresses that have them. Open sessions go
        on. Raises ConfigInvalid."""
        self._endpoints.reload()
        return [endpoint.settings.address for endpoint in self._endpoints]
