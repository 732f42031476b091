"""The bodies of a node's administration (docs/api.md, Administration)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class SettingChange(msgspec.Struct, frozen=True):
    """A difference between the settings that the node runs with and those in its files."""

    name: Annotated[str, Meta(description="Dotted, as in the file; rows of arrays by what they are called")]
    before: Annotated[str, Meta(description='As in TOML, secrets hidden; "" where there was nothing')]
    after: Annotated[str, Meta(description='As in TOML, secrets hidden; "" where there is nothing any more')]
    effect: Annotated[
        Literal["now", "restart"],
        Meta(description="restart: the node goes on with the old value until it is restarted"),
    ]


class ReloadBody(msgspec.Struct, frozen=True):
    """What a reload did, or would do."""

    dry_run: Annotated[bool, Meta(description="Nothing was changed")]
    changes: tuple[SettingChange, ...]
    certificates: Annotated[
        tuple[str, ...], Meta(description="Listeners whose certificates were read anew; none with dry_run")
    ]
