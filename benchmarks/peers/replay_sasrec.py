"""Time RePlay's SasRec: TRAIN.csv LOSS DIM LENGTH BATCH EPOCHS THREADS STEPS."""

import json
import resource
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")
import lightning as L
import polars as pl
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import PolarsTopItemsCallback
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.loss import CE, BCESampled
from replay.nn.sequential import SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms

source, loss = sys.argv[1:3]
dim, length, batch, epochs, threads, steps = map(int, sys.argv[3:])
torch.set_num_threads(threads)
log = pl.read_csv(source)
n_items = int(log["item"].max())
sequences = (
    log.sort("user", "order")
    .group_by("user", maintain_order=True)
    .agg((pl.col("item") - 1).alias("item_id"))
    .select(pl.col("user").alias("user_id") - 1, "item_id")
)


def feature(name, sequential, count, hint, **more):
    where = [TensorFeatureSource(FeatureSource.INTERACTIONS, name)]
    return TensorFeatureInfo(
        name,
        is_seq=sequential,
        feature_type=FeatureType.CATEGORICAL,
        cardinality=count,
        feature_hint=hint,
        feature_sources=where,
        **more,
    )


item = feature("item_id", True, n_items, FeatureHint.ITEM_ID, embedding_dim=dim, padding_value=n_items)
schema = TensorSchema([item, feature("user_id", False, sequences.height, FeatureHint.QUERY_ID)])
transforms = make_default_sasrec_transforms(TensorSchema([schema["item_id"]]))
model = SasRec.from_params(
    schema=TensorSchema([schema["item_id"]]),
    embedding_dim=dim,
    num_heads=1,
    num_blocks=2,
    max_sequence_length=length,
    dropout=0.2,
)
if loss == "bce":
    transforms["train"].insert(
        0, UniformNegativeSamplingTransform(cardinality=n_items, num_negative_samples=1)
    )
    model.loss = BCESampled()
else:
    model.loss = CE(ignore_index=n_items)
model.loss.logits_callback = model.get_logits
n_users = sequences.height
walls = []


class Stopwatch(L.Callback):
    def on_train_epoch_start(self, trainer, module):
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        whole = -(-n_users // batch)
        walls.append((time.perf_counter() - self.began) * (whole / steps if steps else 1))


with tempfile.TemporaryDirectory() as work:
    train_path, predict_path = str(Path(work) / "train.parquet"), str(Path(work) / "predict.parquet")
    sequences.write_parquet(train_path)
    sequences.with_columns(seen_ids=pl.col("item_id")).write_parquet(predict_path)
    longest = int(sequences["item_id"].list.len().max())
    data = ParquetModule(
        batch_size={"train": batch, "predict": 256},
        metadata={
            "train": {"item_id": {"shape": length + 1, "padding": n_items}, "user_id": {}},
            "predict": {
                "item_id": {"shape": length, "padding": n_items},
                "seen_ids": {"shape": longest, "padding": n_items},
                "user_id": {},
            },
        },
        transforms={name: transforms[name] for name in ("train", "predict")},
        train_path=train_path,
        predict_path=predict_path,
    )
    quiet = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    module = LightningModule(model)
    L.Trainer(
        max_epochs=epochs,
        callbacks=[Stopwatch()],
        limit_val_batches=0,
        limit_train_batches=steps or 1.0,
        **quiet,
    ).fit(module, datamodule=data)
    top = PolarsTopItemsCallback(
        top_k=10,
        query_column="user_id",
        item_column="item_id",
        postprocessors=[SeenItemsFilter(item_count=n_items)],
    )
    began = time.perf_counter()
    L.Trainer(callbacks=[top], **quiet).predict(module, datamodule=data, return_predictions=False)
    top.get_result()
    took = time.perf_counter() - began
print(
    json.dumps(
        {
            "version": version("replay-rec"),
            "epochs": walls,
            "steps": steps or "all",
            "rank_seconds": took,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
