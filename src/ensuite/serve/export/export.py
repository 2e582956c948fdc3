"""From a run to a checked file: trace, check, perhaps quantise, write aside, rename."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.serve.engine import Engine, ModelEngine
from ensuite.serve.export.artefact import FILE, GraphCard, fingerprint, seal
from ensuite.serve.export.check import Check, compute_check
from ensuite.serve.export.cost import measure_accuracy, measure_latency
from ensuite.serve.export.engine import OnnxEngine
from ensuite.serve.export.graph import missing, trace
from ensuite.serve.export.int8 import quantise
from ensuite.training.run import Run


@dataclass(frozen=True)
class Cost:
    """What one way of serving a run costs."""

    engine: str
    """torch, onnx or onnx int8."""
    megabytes: float | None
    """Size of its file; None for the model itself."""
    milliseconds: float
    """Median time of a single request, see `measure_latency`."""
    metrics: dict[str, float]
    """Accuracy on validation, see `measure_accuracy`; empty when it was not asked for."""


@dataclass(frozen=True)
class Export:
    """A written file, with what its check found and what it costs beside the model."""

    path: Path
    check: Check
    costs: list[Cost]
    cases: int
    """Validation cases behind the metrics; 0: none were measured."""


def export_onnx(
    run: Run,
    out: str | os.PathLike[str] | None = None,
    *,
    int8: bool = False,
    dataset: Dataset | None = None,
    threads: int | None = None,
) -> Export:
    """Write a run as an ONNX graph, checked against the model; the file before it stays until then.

    Parameters
    ----------
    out
        The file; by default `FILE` in the run's folder.
    int8
        Quantise weights and item table (`quantise`).
    dataset
        With it, the accuracy of the model and the graphs is measured on its validation cases.
    threads
        Of the engine while it is measured, see `OnnxEngine`.

    Raises
    ------
    EnsuiteError
        When the extra is missing, the model cannot be exported, the graph fails its check, or the file
        cannot be written. Nothing is left behind then, and a file that was there is untouched.
    """
    try:
        import onnx
    except ImportError:
        raise missing("onnx") from None
    path, name, model = Path(out or run.path / FILE), run.config.name, run.model.cpu().eval()
    graph = trace(model, name)
    card = GraphCard(
        ensuite=_version(),
        model=name,
        n_items=model.n_items,
        max_length=model.max_length,
        needs_times=model.needs_times(),
        weights=fingerprint(run),
        precision="float32",
        check={},
    )
    exclude = run.card.get("protocol", {}).get("exclude", "seen")
    cases = 0

    def cost(label: str, engine: Engine, size: float | None) -> Cost:
        nonlocal cases
        metrics: dict[str, float] = {}
        if dataset is not None:
            metrics, cases = measure_accuracy(engine, dataset, model.max_length, exclude=exclude)
        return Cost(label, size, measure_latency(engine, model), metrics)

    costs = [cost("torch", ModelEngine(model), None)]
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            for number, precision in enumerate(("float32", "int8")[: 1 + int8]):
                made = graph if precision == "float32" else quantise(graph)
                onnx.checker.check_model(made, full_check=True)
                file = Path(folder, f"{precision}.onnx")
                body = made.SerializeToString()
                _write(file, seal(body, replace(card, precision=precision)))
                engine = OnnxEngine(file, threads=threads)
                check = compute_check(engine, model, name, exact=not number)
                _write(file, seal(body, replace(card, precision=precision, check=asdict(check))))
                label = "onnx" if precision == "float32" else "onnx int8"
                costs.append(cost(label, engine, file.stat().st_size / 1e6))
            os.replace(file, path)
    except OSError as error:
        raise EnsuiteError(
            f"{path}: cannot be written: {error.strerror or error}; a file before it is untouched"
        ) from None
    return Export(path, check, costs, cases)


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _version() -> str:
    from ensuite import __version__

    return __version__
