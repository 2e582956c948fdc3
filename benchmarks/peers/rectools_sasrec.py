"""Time RecTools: TRAIN.csv LOSS DIM LENGTH BATCH EPOCHS THREADS STEPS."""

import json
import resource
import sys
import time
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

source, loss = sys.argv[1:3]
dim, length, batch, epochs, threads, steps = map(int, sys.argv[3:])
torch.set_num_threads(threads)
log = pd.read_csv(source)
log = pd.DataFrame(
    {
        Columns.User: log.user,
        Columns.Item: log.item,
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(log.order, unit="s"),
    }
)
dataset = Dataset.construct(log)
n_users = log[Columns.User].nunique()
walls = []


class Stopwatch(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        whole = -(-n_users // batch)
        walls.append((time.perf_counter() - self.began) * (whole / steps if steps else 1))


def build_trainer():
    quiet = {
        "enable_progress_bar": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[Stopwatch()],
        limit_train_batches=steps or 1.0,
        **quiet,
    )


model = SASRecModel(
    n_blocks=2,
    n_heads=1,
    n_factors=dim,
    dropout_rate=0.2,
    session_max_len=length,
    batch_size=batch,
    lr=1e-3,
    epochs=epochs,
    loss={"bce": "BCE", "ce": "softmax"}[loss],
    n_negatives=1,
    get_trainer_func=build_trainer,
    recommend_torch_device="cpu",
)
model.fit(dataset)
began = time.perf_counter()
model.recommend(users=log[Columns.User].unique(), dataset=dataset, k=10, filter_viewed=True)
print(
    json.dumps(
        {
            "version": version("rectools"),
            "epochs": walls,
            "steps": steps or "all",
            "rank_seconds": time.perf_counter() - began,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
