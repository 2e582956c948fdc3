"""The main job on real data in a few minutes: what `make demo` runs. Each step prints the command that does
the same."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

DATA, RUNS, REPORT = Path("data/ml"), Path("runs/ml"), Path("report/ml")
console = Console()


def run(command: str) -> None:
    """Show a command of the command line and run it."""
    console.print(f"\n[bold cyan]$ {command}[/]", highlight=False, soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", *shlex.split(command)])
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Prepare, train, compare, recommend."""
    began = time.perf_counter()
    console.print(Rule("1. Real data: 100,004 ratings of films"))
    run(f"ensuite prepare ml-small --min-item 5 --out {DATA} --overwrite")
    console.print(Rule("2. Three baselines and SASRec"))
    for name in ("popularity", "recency", "item-knn"):
        run(f"ensuite train {name} --data {DATA} --out {RUNS / name} --overwrite")
    recipe = "recipes/sasrec/ml-small.yaml"
    run(f"ensuite train sasrec --data {DATA} --out {RUNS / 'sasrec'} --recipe {recipe} --overwrite")
    console.print(Rule("3. Which one is best, and is that more than chance?"))
    runs = " ".join(str(RUNS / name) for name in ("popularity", "recency", "item-knn", "sasrec"))
    run(f"ensuite compare {runs} --out {REPORT}")
    console.print(Rule("4. What comes next: for a real user, and for a history given by hand"))
    run(f"ensuite recommend {RUNS / 'sasrec'} --user 4 --k 10")
    console.print(
        "\nSomeone who liked Star Wars (260), The Empire Strikes Back (1196) and The Matrix (2571):"
    )
    run(f"ensuite recommend {RUNS / 'sasrec'} --history 260 1196 2571 --k 10")
    console.print(Rule(f"Done in {time.perf_counter() - began:,.0f} s. Go on with"))
    console.print(
        f"""\
  the report         open {REPORT / "report.html"} in a browser
  your own data      ensuite prepare log.csv --user uid --item sku --time ts --out data/own
  another model      ensuite models
                     ensuite train hstu --data {DATA} --out {RUNS / "hstu"}
                     ensuite compare {RUNS}/* --out {REPORT}
  serve it, see it   ensuite serve {RUNS / "sasrec"} --runs {RUNS}    then open http://127.0.0.1:8000/
  better settings    ensuite tune sasrec --data {DATA} --trials 20
  a longer read      docs/quick-start.md""",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
