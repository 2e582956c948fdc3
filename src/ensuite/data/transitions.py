"""How often one item came after another in the training events."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ensuite.data.dataset import Events


def count_transitions(events: Events, span: int = 1, last: int = 0, decay: bool = False) -> sp.csr_matrix:
    """Count which item came within ``span`` events after which, user by user: [V + 1, V + 1] float64.

    Entry (i, j) is the number of pairs "i, then j"; pairs further than ``span`` events apart do not count.

    Parameters
    ----------
    events
        What may be counted: a dataset's training view.
    span
        Largest distance of a pair, at least 1.
    last
        Read only each user's last events, so many; 0 = all.
    decay
        Count a pair at distance d as 1 / d instead of 1.

    Examples
    --------
    >>> walk = Events(np.array([0]), np.array([4]), np.array([1, 2, 1, 2]), None, 1.0, 2)
    >>> count_transitions(walk).toarray().tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]
    """
    size = events.n_items + 1
    rows = events.rows()
    lengths = events.lengths
    user = np.repeat(np.arange(len(lengths)), lengths)
    if last:
        recent = rows >= (events.ends - last)[user]
        rows, user = rows[recent], user[recent]
    items = events.item_idx[rows].astype(np.int64)
    table = sp.csr_matrix((size, size), dtype=np.float64)
    for distance in range(1, span + 1):
        same = user[distance:] == user[:-distance]
        before, after = items[:-distance][same], items[distance:][same]
        weight = np.full(len(before), 1 / distance if decay else 1.0)
        table = table + sp.csr_matrix((weight, (before, after)), shape=(size, size))
    return table
