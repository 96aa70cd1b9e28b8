"""Which blocks of the KV cache belong to whom: a bounded pool, with the prompts of earlier requests kept while there is room.

A block holds the keys and values of `block_tokens` tokens in all layers (Kwon et al. 2023, PagedAttention). A full block
is known by a digest of its tokens and of all that stand before them, so a request whose prompt begins like an earlier
one takes those blocks over instead of computing them. A block that nobody uses stays known until the room is wanted;
the longest unused goes first. Rejected: a contiguous piece a request (a request with no `max_tokens` would have to
reserve the whole context) and a radix tree of prompts (the chained digests answer the one question that is asked).
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


class BlockPool:
    """Blocks 0 to `num_blocks` - 1, each free, or held by one request or several."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._known: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """Longest unused first."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> float:
        """Share of the blocks that requests hold."""
        return 1.0 - len(self._free) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_tokens)

    def take(self, count: int) -> list[int] | None:
        """So many blocks, or None, and nothing taken, if there are not as many."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
            if (digest := self._digests[block]) is not None:
                del self._known[digest]
                self._digests[block] = None
        return taken

    def share(self, digests: Sequence[bytes]) -> list[int]:
        """Take over the blocks known by the longest beginning of these digests."""
        shared = []
        for digest in digests:
            block = self._known.get(digest)
            if block is None:
                break
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1
            shared.append(block)
        return shared

    def learn(self, block: int, digest: bytes) -> None:
        """A block is full now: others may share it. Where one with the same tokens is known, that one stays."""
        if digest not in self._known and self._digests[block] is None:
            self._known[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give back what one request held; the end of a prompt is forgotten before its beginning."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0
            if self._holders[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)


def root_digest(what: str) -> bytes:
    """What the digests of a request begin with: all that its KV depends on beside its tokens."""
    return blake2b(what.encode(), digest_size=16).digest()


def next_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Digest of a full block, from that of the block before it, or the root."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()
