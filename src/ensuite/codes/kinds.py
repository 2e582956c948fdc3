"""The tokenisers by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from ensuite.codes.tokeniser import Tokeniser
from ensuite.errors import EnsuiteError, did_you_mean

KINDS = {
    "rq-vae": "rq_vae:RQVAE",
    "rq-k-means": "rq_k_means:RQKMeans",
    "opq": "opq:OPQ",
    "fsq": "fsq:FSQ",
    "mpq": "mpq:MPQ",
    "lsh": "lsh:LSH",
    "random": "random:RandomCodes",
}


def tokeniser_class(kind: str) -> type[Tokeniser]:
    """Return the class of a tokeniser; an unknown name is refused with the nearest one."""
    if kind not in KINDS:
        raise EnsuiteError(f"unknown tokeniser '{kind}'; {did_you_mean(kind, KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(f"ensuite.codes.{module}"), name)
