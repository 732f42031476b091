"""A file system in memory that forgets what was never synced: a power cut for tests.

Run as `python power_loss_fs.py MOUNTPOINT`; prints `mounted`, then takes lines on standard input:

    cut SEED DEST    lose power: write what a disk might hold into DEST, answer `cut`, and answer every
                     further operation with EIO

What a disk might hold: for each file the bytes of its last fsync, plus a random choice of the 512-byte
sectors written since (a write can be torn, and later ones can arrive without earlier ones), with the
file's length as of the sync or any later one. Names: creations, renames and unlinks since the
directory's last sync happen or don't, each prefix being as likely as another. Only standard library and
pyfuse3 (LGPL, a test extra), so that it needs nothing of the project it tests.
"""

import errno
import os
import random
import stat
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyfuse3
import trio

SECTOR = 512


@dataclass
class Node:
    """An inode: `data` is what the running system sees, `durable` what the last fsync kept."""

    inode: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    entries: dict[bytes, int] = field(default_factory=dict)
    changes: list[dict[bytes, int]] = field(default_factory=list)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def sync(self) -> None:
        """What fsync promises: all of it is on the disk now."""
        if self.is_dir:
            self.changes = [dict(self.entries)]
            return
        if len(self.durable) != len(self.data):
            self.durable = bytearray(self.data)
        for at, chunk in self.unsynced:
            self.durable[at : at + len(chunk)] = self.data[at : at + len(chunk)]
        self.unsynced.clear()
        self.lengths = [len(self.data)]


class PowerLoss(pyfuse3.Operations):
    """The operations; `is_cut` makes all of them fail."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)
        root.sync()
        self.nodes: dict[int, Node] = {root.inode: root}
        self.next_inode = root.inode + 1
        self.is_cut = False

    def node(self, inode: int) -> Node:
        if self.is_cut:
            raise pyfuse3.FUSEError(errno.EIO)
        try:
            return self.nodes[inode]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def child(self, parent: int, name: bytes) -> Node:
        directory = self.node(parent)
        if name not in directory.entries:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.nodes[directory.entries[name]]

    def note_names(self, directory: Node) -> None:
        directory.changes.append(dict(directory.entries))

    def attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.inode
        entry.st_mode = node.mode
        entry.st_nlink = 1
        entry.st_size = len(node.data)
        entry.st_blocks = (len(node.data) + 511) // 512
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = 1
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    def add(self, parent: int, name: bytes, mode: int) -> Node:
        directory = self.node(parent)
        if name in directory.entries:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = Node(self.next_inode, mode)
        self.next_inode += 1
        if node.is_dir:
            node.sync()
        else:
            node.lengths = [0]
        self.nodes[node.inode] = node
        directory.entries[name] = node.inode
        self.note_names(directory)
        return node

    async def getattr(self, inode, ctx):
        return self.attributes(self.node(inode))

    async def lookup(self, parent_inode, name, ctx):
        if name == b".":
            return self.attributes(self.node(parent_inode))
        return self.attributes(self.child(parent_inode, name))

    async def setattr(self, inode, attr, fields, fh, ctx):
        node = self.node(inode)
        if fields.update_size:
            size = attr.st_size
            if size < len(node.data):
                del node.data[size:]
                node.unsynced.append((size, b""))
            else:
                node.data.extend(bytes(size - len(node.data)))
            node.lengths.append(size)
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        return self.attributes(node)

    async def mkdir(self, parent_inode, name, mode, ctx):
        return self.attributes(self.add(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def mknod(self, parent_inode, name, mode, rdev, ctx):
        return self.attributes(self.add(parent_inode, name, mode))

    async def create(self, parent_inode, name, mode, flags, ctx):
        node = self.add(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode))
        return pyfuse3.FileInfo(fh=node.inode), self.attributes(node)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=self.node(inode).inode)

    async def opendir(self, inode, ctx):
        return self.node(inode).inode

    async def readdir(self, fh, start_id, token):
        rows = sorted(self.node(fh).entries.items())
        for at, (name, inode) in enumerate(rows):
            if at >= start_id and not pyfuse3.readdir_reply(token, name, self.attributes(self.nodes[inode]), at + 1):
                return

    async def unlink(self, parent_inode, name, ctx):
        self.child(parent_inode, name)
        directory = self.nodes[parent_inode]
        del directory.entries[name]
        self.note_names(directory)

    async def rmdir(self, parent_inode, name, ctx):
        await self.unlink(parent_inode, name, ctx)

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        moved = self.child(parent_inode_old, name_old)
        source, target = self.nodes[parent_inode_old], self.node(parent_inode_new)
        del source.entries[name_old]
        target.entries[name_new] = moved.inode
        self.note_names(target)
        if source is not target:
            self.note_names(source)

    async def read(self, fh, off, size):
        return bytes(self.node(fh).data[off : off + size])

    async def write(self, fh, off, buf):
        node = self.node(fh)
        if off > len(node.data):
            node.data.extend(bytes(off - len(node.data)))
        node.data[off : off + len(buf)] = buf
        node.unsynced.append((off, bytes(buf)))
        node.lengths.append(len(node.data))
        return len(buf)

    async def fsync(self, fh, datasync):
        self.node(fh).sync()

    async def fsyncdir(self, fh, datasync):
        self.node(fh).sync()

    async def flush(self, fh):
        self.node(fh)

    async def release(self, fh):
        pass

    async def releasedir(self, fh):
        pass

    async def forget(self, inode_list):
        pass

    async def statfs(self, ctx):
        values = pyfuse3.StatvfsData()
        values.f_bsize = values.f_frsize = 4096
        values.f_blocks = values.f_bfree = values.f_bavail = 1 << 20
        values.f_files = values.f_ffree = values.f_favail = 1 << 20
        values.f_namemax = 255
        return values

    def lose_power(self, chance: random.Random, destination: str) -> None:
        """Writes one possible content of the disk to `destination` and fails everything afterwards."""
        self.is_cut = True
        self._write_directory(self.nodes[pyfuse3.ROOT_INODE], chance, destination)

    def _write_directory(self, directory: Node, chance: random.Random, destination: str) -> None:
        os.makedirs(destination, exist_ok=True)
        for name, inode in chance.choice(directory.changes).items():
            node, path = self.nodes[inode], os.path.join(destination, os.fsdecode(name))
            if node.is_dir:
                self._write_directory(node, chance, path)
            elif stat.S_ISREG(node.mode):
                with open(path, "wb") as file:
                    file.write(surviving(node, chance))
                os.chmod(path, stat.S_IMODE(node.mode))


def surviving(node: Node, chance: random.Random) -> bytes:
    """The bytes of one file after the cut: its last sync, and any of the sectors written since."""
    content = bytearray(node.durable)
    luck = chance.choice((0.0, 0.5, 0.9, 1.0))
    for at, chunk in node.unsynced:
        end = at + len(chunk)
        sector = at - at % SECTOR
        while sector < end:
            if chance.random() < luck:
                start, stop = max(sector, at), min(sector + SECTOR, end)
                if stop > len(content):
                    content.extend(bytes(stop - len(content)))
                content[start:stop] = chunk[start - at : stop - at]
            sector += SECTOR
    length = chance.choice(node.lengths) if node.lengths else len(content)
    if not node.unsynced:
        return bytes(content)
    return bytes(content[:length]) if length < len(content) and length >= len(node.durable) else bytes(content)


async def serve(operations: PowerLoss) -> None:
    """Serves the mount until it is unmounted or standard input ends."""
    commands_in, commands_out = trio.open_memory_channel[str](10)
    token = trio.lowlevel.current_trio_token()

    def read_commands() -> None:
        for line in sys.stdin:
            trio.from_thread.run(commands_in.send, line, trio_token=token)
        trio.from_thread.run(commands_in.aclose, trio_token=token)

    threading.Thread(target=read_commands, daemon=True).start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        print("mounted", flush=True)
        async for line in commands_out:
            _, seed, destination = line.split()
            operations.lose_power(random.Random(int(seed)), destination)
            print("cut", flush=True)
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str]) -> None:
    """Mounts on the only argument."""
    operations = PowerLoss()
    options = set(pyfuse3.default_options) | {"fsname=powerloss"}
    options.discard("default_permissions")
    pyfuse3.init(operations, arguments[0], options)
    try:
        trio.run(serve, operations)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1:])
