"""``ensuite serve``: put a run behind an HTTP service."""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from ensuite.serve.service import Service

DESCRIPTION = """\
Answer requests for recommendations, and remember what happened: an HTTP service with an event store.

  ensuite serve runs/sasrec
  ensuite serve runs/sasrec --runs runs --watch --fallback runs/popularity
  ensuite export runs/sasrec --onnx && ensuite serve runs/sasrec --engine onnx
  ENSUITE_STORE=postgresql+psycopg://shop@db/events ensuite serve runs/sasrec --port 8001
  ensuite store keys add shop --scope read write
  ensuite serve runs/sasrec --host 0.0.0.0          # beyond this machine: callers need a key

One process is one model in memory and one event loop. For more, start several on ports of their own, with one
PostgreSQL store, behind a proxy. SIGTERM ends a service after the requests under way.
"""


@dataclass(frozen=True)
class Arguments:
    """The flags of `ensuite serve`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, made by `ensuite train`."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than the loopback needs API keys (`ensuite store keys add`)."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    store: str | None = None
    """Events, new items and keys: a SQLite file, or the URL of a PostgreSQL database; made if it is not
    there. Default: $ENSUITE_STORE, else ensuite-events.sqlite."""
    engine: Literal["auto", "torch", "index", "onnx"] = "auto"
    """What computes: torch, the model itself; index, the index of `ensuite index RUN`; onnx, the graph that
    `ensuite export RUN --onnx` wrote (both faster; a fixed catalogue: new items need torch); auto, the index
    if there is one, else torch."""
    runs: Path | None = None
    """A folder of runs that may take this one's place: POST /v1/model {"run": NAME}. The page
    compares them, and shows those in training."""
    watch: bool = False
    """Serve newer weights by themselves: of this run, and finished runs of the same system in --runs."""
    fallback: Path | None = None
    """A popularity run, whose items answer when the user is unknown or the model fails. Default: one on the
    same data beside RUN, else the catalogue in its own order."""
    history: int = 1000
    """Last events of a user that are read from the store."""
    timeout: float = 1.0
    """Seconds after which a request is answered from the fallback list."""
    threads: int = 0
    """Processor threads of the model; 0: half of the cores."""
    require_keys: bool = False
    """Ask callers for API keys on the loopback too: behind a proxy, say."""
    origins: tuple[str, ...] = ()
    """Origins whose web pages may call the service (CORS), https://shop.example; by default none may."""
    page: bool = True
    """Show the page for people at /: try it, runs, trainings. It is loaded once requests are answered."""


def main(argv: list[str]) -> None:
    """Run `ensuite serve` with the arguments after its name."""
    arguments = tyro.cli(
        Arguments,
        args=argv,
        prog="ensuite serve",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from ensuite.errors import EnsuiteError

    if arguments.history < 1 or arguments.timeout <= 0 or arguments.threads < 0:
        raise EnsuiteError("--history is at least 1, --timeout above 0 and --threads at least 0")
    listening = bind(arguments.host, arguments.port)  # before the seconds that loading takes
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // 2)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read when torch is imported
    import torch

    torch.set_num_threads(threads)
    from ensuite.serve.http import build_app
    from ensuite.serve.recommender import Recommender
    from ensuite.serve.runs import RunFolder
    from ensuite.serve.service import Service
    from ensuite.serve.store import EventStore, default_url

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("ensuite").setLevel(logging.INFO)
    store = EventStore.open(arguments.store or default_url())
    keyed = arguments.require_keys or not is_loopback(listening)
    if keyed and not any(key.revoked is None for key in store.keys()):  # noqa: SIM118
        raise EnsuiteError(
            f"{arguments.host}: whoever can reach this address needs an API key, and the store {store.name} "
            "has none; make one with `ensuite store keys add NAME --scope read write`, or listen on 127.0.0.1"
        )
    runs = None if arguments.runs is None else RunFolder(arguments.runs)
    if runs is not None:
        runs.names()  # refuses a folder that is not there
    service = Service(
        arguments.run,
        store,
        load=lambda run: Recommender.of(run, engine=arguments.engine),
        fallback=arguments.fallback,
        history=arguments.history,
        timeout=arguments.timeout,
    )
    app = build_app(
        service, require_keys=keyed, origins=arguments.origins, runs=runs, watch_runs=arguments.watch
    )
    if arguments.page:
        from ensuite.serve.page import mount

        mount(app, service, arguments.runs)
    try:
        serve(app, listening, explain(service, url_of(listening), keyed, arguments.page))
    finally:
        store.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises
    ------
    EnsuiteError
        When the address is none of this machine, or the port is taken.
    """
    from ensuite.errors import EnsuiteError

    if not 0 <= port < 1 << 16:  # the resolver would take it modulo that
        raise EnsuiteError(f"--port {port}: a port is a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # here already, so that a port in use is found now
    except OSError as error:
        raise EnsuiteError(
            f"{host}, port {port}: {error.strerror or error}; choose another --port or --host"
        ) from None
    return listening


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    from ipaddress import ip_address

    return ip_address(listening.getsockname()[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    """Return the address of a socket as callers on this machine write it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def explain(service: Service, url: str, keyed: bool, page: bool) -> str:
    """Say what serves, where, and how to ask it."""
    loaded, items = service.loaded, service.recommender.item_ids
    shown = [item for item in loaded.fallback.ids if service.recommender.knows(item)][:3]
    history: list[Any] = list(shown)
    if service.recommender.model.needs_times():
        history = [{"item_id": item, "time": f"2024-05-0{day}"} for day, item in enumerate(shown, 1)]
    body = shlex.quote(json.dumps({"history": history, "k": 3}))
    key = "-H 'Authorization: Bearer KEY' " if keyed else ""
    lines = [
        f"{loaded.run.path}: {loaded.run.config.name}, {len(items):,} items, version {loaded.version}",
        f"  listens   {url}" + ("    (API keys required)" if keyed else "    (this machine only)"),
        f"  store     {service.store.name}",
        f"  fallback  {loaded.fallback.source}",
        *([f"  page      {url}/"] if page else []),
        f"  docs      {url}/docs",
        "",
        f"  curl {url}/v1/recommend {key}-H 'Content-Type: application/json' -d {body}",
        "",
    ]
    if loaded.fallback.source == "catalogue order":
        lines.insert(4, "            (no popularity run: unknown users get the first items; see --fallback)")
    return "\n".join(lines)


def serve(app: Any, listening: socket.socket, text: str) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way and return."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                sys.stdout.write(text)
                sys.stdout.flush()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Longer than proxies keep a connection (nginx: 60 s), which would else send into one that closes.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=30,
    )
    gc.collect()
    gc.freeze()  # what is loaded now stays: no request waits for its hundreds of thousands of objects
    # uvicorn raises the signal that ended it again, for whoever waits for it: an end in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    Server(config).run(sockets=[listening])
