"""Is a graph being exported? What has no fixed form there is then computed in another way."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether the running code is being traced by `torch.export`."""
    ask = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.6 has no such function
    return ask is not None and ask()
