"""What checking a whole log found, for programs and for people."""

import click
import msgspec

FAULTS_LISTED = 100


class LogReport(msgspec.Struct):
    """What a check found. `faults` lists the first hundred, `fault_count` counts all."""

    directory: str
    read_as: str
    log_id: str = ""
    epoch: str = ""
    entries: int = 0
    packets: int = 0
    reduced: int = 0
    cut: int = 0
    cut_checkpoints: int = 0
    streams: int = 0
    checkpoints: int = 0
    lost_checkpoints: int = 0
    lost: int = 0
    compared_to: int | None = None
    signed_size: int = 0
    root: str = ""
    faults: list[str] = []
    fault_count: int = 0

    @property
    def is_intact(self) -> bool:
        return self.fault_count == 0

    def note(self, fault: str) -> None:
        """One more thing that doesn't hold."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_LISTED:
            self.faults.append(fault)

    def print(self) -> None:
        """For a person."""
        click.echo("The log is intact.\n" if self.is_intact else f"The log is BROKEN: {self.fault_count} faults.\n")
        for fault in self.faults:
            click.echo(f"  ! {fault}")
        if self.fault_count > len(self.faults):
            click.echo(f"  ! and {self.fault_count - len(self.faults)} more")
        gone = f", the content of {self.reduced} taken away on record" if self.reduced else ""
        click.echo(f"log          {self.log_id}, epoch {self.epoch}")
        click.echo(f"read         {self.directory} ({self.read_as})")
        if self.cut:
            click.echo(
                f"cut          {self.cut} entries from the log's beginning; of these only the tree is left to trust"
            )
        click.echo(f"entries      {self.entries}, {self.packets} of them packets of {self.streams} streams{gone}")
        if self.lost:
            click.echo(f"lost         {self.lost} entries to damage, which is on record; readers are told of the gaps")
        if self.compared_to is not None:
            click.echo(f"             beyond entry {self.compared_to} no root could be compared")
        click.echo(
            f"checkpoints  {self.checkpoints} signed and fitting the entries, the newest over {self.signed_size}"
        )
        if self.cut_checkpoints:
            click.echo(f"             {self.cut_checkpoints} of the part that was cut; not comparable any more")
        if self.lost_checkpoints:
            click.echo(f"             {self.lost_checkpoints} of histories that a restore lost; not comparable")
        if self.entries > self.signed_size:
            click.echo(f"             {self.entries - self.signed_size} entries came after it and aren't signed yet")
        click.echo(f"root         {self.root}")
        click.echo(
            "\nNot proven: that the operator never rewrote the whole log and signed it anew, nor that anybody else was "
            "shown\nthe same one. That takes a witness, an anchor, or a checkpoint kept elsewhere."
        )
