"""Preferences that contradict one another: pairs of one prompt compared across rows.

A preference says that one answer to a prompt is better than another: an edge from chosen to rejected. A prompt's
preferences can all hold at once if and only if some order of its answers satisfies them, which is so if and only if
the edges have no cycle; and an edge lies on a cycle if and only if both its ends are in one strongly connected
component. So three things can be wrong with a row, and nothing else:

- identical: both answers are the same, a cycle of one;
- swapped: another row has the same two answers the other way round, a cycle of two;
- contradictory: neither, and yet the edge lies on a cycle (a over b, b over c, c over a).

An answer that is chosen in one row and rejected in another is no contradiction: it is second of three. All rows on a
cycle are named, and none is believed more than the others: which of a swapped pair is right is for a person to say, and
"the one seen more often" would reward repeated rows. What counts as the same is in the keys, which `pair_keys` makes
after a stated normalisation. Rejected: looking for swapped pairs only, which leaves longer cycles in the data.
"""

import hashlib
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from llmray.data.exact import KEY_BYTES
from llmray.data.normalize import Normalization, normalize
from llmray.data.rows import Row

Keys = NDArray[np.uint64] | NDArray[np.bytes_] | NDArray[np.void]


class Conflict(IntEnum):
    """What is wrong with a preference in the light of the others."""

    NONE = 0
    IDENTICAL = 1
    SWAPPED = 2
    CONTRADICTORY = 3


def pair_keys(row: Row, rules: Normalization) -> tuple[bytes, bytes, bytes] | None:
    """128-bit names of the prompt, the chosen and the rejected answer; None for a row that is no preference.

    Kept as `pyarrow.binary(16)` or `np.void`: numpy's `S16` drops zero bytes at the end.
    """
    if row.shape != "preference":
        return None
    prompt, chosen, rejected = (
        hashlib.blake2b(normalize(text or "", rules).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
        for text in (row.prompt, row.chosen, row.rejected)
    )
    return prompt, chosen, rejected


def conflicts(prompt_keys: Keys, chosen_keys: Keys, rejected_keys: Keys) -> NDArray[np.int8]:
    """A `Conflict` for each preference [R]; the same for every order of the rows.

    Args:
        prompt_keys: what the prompts are, the same key for the same prompt [R].
        chosen_keys: the same for the better answers [R].
        rejected_keys: the same for the worse answers, comparable with `chosen_keys` [R].
    """
    num_rows = len(prompt_keys)
    if not num_rows:
        return np.zeros(0, np.int8)
    _, prompt_R = np.unique(_plain(prompt_keys), return_inverse=True)
    _, answer_2R = np.unique(_plain(np.concatenate([chosen_keys, rejected_keys])), return_inverse=True)
    # An answer is a node of its own under each prompt, so components never join prompts.
    nodes, node_2R = np.unique(np.tile(prompt_R, 2) * (int(answer_2R.max()) + 1) + answer_2R, return_inverse=True)
    chosen_R, rejected_R = node_2R[:num_rows], node_2R[num_rows:]
    edges = sparse.coo_matrix((np.ones(num_rows, np.int8), (chosen_R, rejected_R)), shape=(len(nodes), len(nodes)))
    _, component = csgraph.connected_components(edges.tocsr(), directed=True, connection="strong")
    codes_R = np.where(component[chosen_R] == component[rejected_R], Conflict.CONTRADICTORY, Conflict.NONE)
    there_R, back_R = chosen_R * len(nodes) + rejected_R, rejected_R * len(nodes) + chosen_R
    codes_R[np.isin(there_R, back_R)] = Conflict.SWAPPED
    codes_R[chosen_R == rejected_R] = Conflict.IDENTICAL
    return codes_R.astype(np.int8)


def _plain(keys: Any) -> NDArray[Any]:
    """Keys that numpy sorts fast: 16 bytes of no kind as the rank of their first half and that of their second."""
    keys = np.ascontiguousarray(keys)
    if keys.dtype.kind != "V":
        return keys
    assert keys.dtype.itemsize == KEY_BYTES
    halves_R2 = keys.view(np.uint64).reshape(-1, 2)
    (_, first_R), (seconds, second_R) = (np.unique(halves_R2[:, half], return_inverse=True) for half in (0, 1))
    return first_R * len(seconds) + second_R
