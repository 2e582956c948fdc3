"""API keys: made, hashed, compared.

A secret holds 256 random bits, so its plain SHA-256 can be kept: the slow, salted hashes that passwords need
protect what can be guessed, and nobody guesses 256 bits; two equal secrets, which a salt would hide, do not
occur. Looking a digest up in an index may betray by its timing how much of a digest was right, which tells
nothing about the secret."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Set
from secrets import token_urlsafe

from ensuite.errors import EnsuiteError, did_you_mean

SCOPES = ("read", "write")
PREFIX = "ens_"
"""So that a secret that leaked into a log or a repository can be searched for."""


def make() -> str:
    """Return a new secret."""
    return PREFIX + token_urlsafe(32)


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare digests in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


def check_scopes(scopes: Set[str]) -> None:
    """Refuse a scope that is none, and a key without any."""
    if not scopes:
        raise EnsuiteError(f"a key needs a scope: {', '.join(SCOPES)}, or both")
    for scope in sorted(scopes):
        if scope not in SCOPES:
            raise EnsuiteError(f"unknown scope '{scope}'; {did_you_mean(scope, SCOPES)}")
