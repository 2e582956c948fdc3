"""What one of several processes does; a module of its own, so that a fresh interpreter can import it."""

from __future__ import annotations

import numpy as np
import torch
from evaluate.fakes import DotScorer, random_log

from ensuite.evaluate.ranks import compute_ranks, gather


def rank_share(rank: int, world: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    events, cases = random_log(n_targets=2)
    ranks = gather(compute_ranks(DotScorer(300, dim=50), events, cases, batch_size=16, part=(rank, world)))
    np.savez(f"{out}/{rank}.npz", rank=ranks.rank, case=ranks.case)
    torch.distributed.destroy_process_group()
