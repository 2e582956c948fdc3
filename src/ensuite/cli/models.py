"""``ensuite models``: which systems there are, and what can be set in each."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Arguments:
    """List the registered systems, ours and those of other packages; with a NAME, its settings."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A system, to see its settings, their defaults and what they mean."""
    json: bool = False
    """Print JSON, and nothing else, on standard output."""


def main(argv: list[str]) -> None:
    """Run `ensuite models` with the arguments after its name."""
    arguments = tyro.cli(Arguments, args=argv, prog="ensuite models", config=(tyro.conf.FlagCreatePairsOff,))
    from ensuite.models.registry import model_names

    if arguments.name is not None:
        found = describe(arguments.name)
        if arguments.json:
            sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
        else:
            _show_one(found)
        return
    systems = [_describe_or_say_why(name) for name in model_names()]
    if arguments.json:
        sys.stdout.write(json.dumps(systems, indent=2, default=str) + "\n")
    else:
        _show_all(systems)


def describe(name: str) -> dict[str, Any]:
    """Return what is known of a system without building it; an unknown name is refused with the nearest
    one."""
    from ensuite.models.registry import load_model

    cls = load_model(name)
    fields = cls.Config.__pydantic_fields__  # type: ignore[attr-defined]
    settings = [
        {
            "name": field.name,
            "type": getattr(field.type, "__name__", None) or str(field.type).replace("typing.", ""),
            "default": _default(field),
            "help": " ".join((fields[field.name].description or "").split()),
        }
        for field in dataclasses.fields(cls.Config)
    ]
    return {
        "name": name,
        "summary": cls.summary,
        "paper": cls.paper,
        "family": cls.family,
        "state": cls.state,
        "learns_from": list(cls.samples),
        "package": cls.__module__.partition(".")[0],
        "module": cls.__module__,
        "recipe": dict(cls.defaults),
        "settings": settings,
    }


def _describe_or_say_why(name: str) -> dict[str, Any]:
    from ensuite.errors import EnsuiteError

    try:
        return describe(name)
    except EnsuiteError as error:  # one broken package must not hide the others
        return {
            "name": name,
            "summary": str(error),
            "learns_from": [],
            "package": "",
            "settings": [],
            "broken": True,
        }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        default = getattr(field.default, "default", field.default)  # pydantic wraps some in its own FieldInfo
        return default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _show_all(systems: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Systems", title_justify="left")
    for column in ("name", "what it is, and its paper", "family, state"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for system in systems:
        others = system["package"] != "ensuite"
        if system.get("broken"):
            table.add_row(system["name"], f"[red]{escape(system['summary'])}[/red]")
            continue
        paper = escape(system["paper"].partition(", arXiv")[0])
        state = f"package {escape(system['package'])}" if others else escape(system["state"])
        table.add_row(
            system["name"],
            escape(system["summary"]) + (f"\n[dim]{paper}[/dim]" if paper else ""),
            f"{escape(system['family'])}\n[dim]{state}[/dim]",
        )
    console = Console()
    console.print(table, highlight=False)
    console.print(
        "ensuite models NAME shows the settings of one; ensuite train NAME --help all its flags.",
        highlight=False,
    )


def _show_one(system: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(system['name'])}[/bold]: {escape(system['summary'])}", highlight=False)
    how = (
        f"trained on samples of kind {', '.join(system['learns_from'])}"
        if system["learns_from"]
        else "counted, not trained"
    )
    paper = f"{escape(system['paper'])}; " if system["paper"] else ""
    console.print(f"{paper}{how}; {escape(system['module'])}\n", highlight=False)
    table = Table("setting", "default", "what it does")
    for setting in system["settings"]:
        table.add_row(
            "--model." + setting["name"].replace("_", "-"),
            escape(str(setting["default"])),
            escape(setting["help"]),
        )
    console.print(table, highlight=False)
    for section, values in system["recipe"].items():
        console.print(f"default {escape(section)}: {escape(str(dict(values)))}", highlight=False)
    console.print(
        f"\nensuite train {system['name']} --data DATA --out runs/{system['name']}", highlight=False
    )
