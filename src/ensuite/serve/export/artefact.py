"""The file: an ONNX graph with a card that says what it is of, sealed by a checksum.

A protobuf message goes on where another ends, so the card and then the seal, entries of the model's metadata,
are appended to the graph's bytes: every ONNX tool reads the file, and its last bytes tell whether the rest is
whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensuite.config import config_dict
from ensuite.errors import EnsuiteError
from ensuite.training.run import Run

FORMAT_VERSION = 1
FILE = "model.onnx"
"""Its name in a run folder."""
CARD_KEY, SEAL_KEY = "ensuite", "ensuite-sha256"


@dataclass(frozen=True)
class GraphCard:
    """What a graph was made from, and how well it agrees with it."""

    ensuite: str
    """Version that wrote it."""
    model: str
    n_items: int
    max_length: int
    needs_times: bool
    weights: str
    """See `fingerprint`."""
    precision: str
    """float32 or int8."""
    check: dict[str, Any]
    """Numbers of the check after the export, see `Check`."""
    format_version: int = FORMAT_VERSION


def fingerprint(run: Run) -> str:
    """Hash the weights of a run and the settings of its model: another number, another model."""
    digest = hashlib.sha256(json.dumps(config_dict(run.config.model), sort_keys=True).encode())
    for name, tensor in sorted(run.model.state_dict().items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.data if values.ndim else values.tobytes())
    return digest.hexdigest()[:16]


def seal(graph: bytes, card: GraphCard) -> bytes:
    """Return the file's bytes: the graph (a serialised ModelProto), its card and its checksum."""
    whole = graph + _entry(CARD_KEY, json.dumps(asdict(card)))
    return whole + _entry(SEAL_KEY, hashlib.sha256(whole).hexdigest())


def read_sealed(path: Path) -> bytes:
    """Read a file of `seal` and check that it is whole.

    Raises
    ------
    EnsuiteError
        When there is none, it is no export of ensuite, or its bytes are not those that were written.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise EnsuiteError(
            f"{path}: no such file; make it with `ensuite export {path.parent} --onnx`"
        ) from None
    except OSError as error:
        raise EnsuiteError(f"{path}: cannot be read: {error.strerror or error}") from None
    length = len(_entry(SEAL_KEY, hashlib.sha256().hexdigest()))
    whole, end = data[:-length], data[-length:]
    if SEAL_KEY.encode() not in end:
        raise EnsuiteError(f"{path}: not an export of ensuite, or cut off; export the run again")
    if end != _entry(SEAL_KEY, hashlib.sha256(whole).hexdigest()):
        raise EnsuiteError(f"{path}: damaged: its checksum is another; export the run again")
    return data


def read_graph_card(metadata: dict[str, str], path: Path) -> GraphCard:
    """Read the card in the metadata of a whole file; one of another format version is refused."""
    values = json.loads(metadata[CARD_KEY])
    if values["format_version"] != FORMAT_VERSION:
        raise EnsuiteError(
            f"{path}: export format {values['format_version']}, this version of ensuite reads "
            f"{FORMAT_VERSION}; export the run again"
        )
    return GraphCard(**values)


def _entry(key: str, value: str) -> bytes:
    """Serialise one entry of ModelProto.metadata_props: field 14, a message of texts 1 (key), 2 (value)."""
    entry = b"".join(
        bytes([tag]) + _varint(len(text)) + text for tag, text in ((10, key.encode()), (18, value.encode()))
    )
    return bytes([114]) + _varint(len(entry)) + entry


def _varint(number: int) -> bytes:
    """Write a length as protobuf does: seven bits a byte, the lowest first.

    >>> _varint(300)
    b'\\xac\\x02'
    """
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
