"""The one exception a user sees, and the nearest-name hint that every "unknown ..." message carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EnsuiteError(Exception):
    """A mistake that the user can mend: the message names what, where, the value and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a sentence naming the nearest of ``choices``, or all of them when none is near.

    >>> did_you_mean("sasrek", ["sasrec", "hstu"])
    "did you mean 'sasrec'?"
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
