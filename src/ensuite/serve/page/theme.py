"""How the pages look: the report's colours and charts, one accent, and what makes them follow the system or
the reader."""

from __future__ import annotations

from importlib.resources import files

from ensuite.evaluate.report.style import DARK, LIGHT, PARTS

ICONS = {
    "search": '<circle cx="7" cy="7" r="4.5"/><path d="M10.5 10.5 14 14"/>',
    "up": '<path d="M8 13V3M4 7l4-4 4 4"/>',
    "down": '<path d="M8 3v10M4 9l4 4 4-4"/>',
    "remove": '<path d="M4 4l8 8M12 4l-8 8"/>',
    "why": '<path d="M3 4h10M3 8h5M3 12h8"/>',
    "system": '<rect x="2" y="3" width="12" height="8.5" rx="1.5"/><path d="M6 14h4"/>',
    "sun": '<circle cx="8" cy="8" r="3"/><path d="M8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1.1 1.1'
    'M11.9 11.9 13 13M3 13l1.1-1.1M11.9 4.1 13 3"/>',
    "moon": '<path d="M13.5 9.5A6 6 0 0 1 6.5 2.5a6 6 0 1 0 7 7Z"/>',
}

LOGO = (
    '<svg viewBox="0 0 30 16" width="30" height="16" aria-hidden="true"><g fill="currentColor">'
    '<circle cx="3" cy="8" r="2" opacity=".35"/><circle cx="10" cy="8" r="2.4" opacity=".6"/></g>'
    '<circle cx="21" cy="8" r="5" fill="none" stroke="var(--accent)" stroke-width="3"/></svg>'
)

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<circle cx="5" cy="16" r="3" fill="#98a2b5"/>'
    '<circle cx="20" cy="16" r="8" fill="none" stroke="#3b6fe0" stroke-width="5"/></svg>'
)


def icon(name: str) -> str:
    """Return a sign as inline SVG, in the colour of the text."""
    return (
        '<svg class="sign" viewBox="0 0 16 16" width="16" height="16" fill="none" stroke="currentColor" '
        f'stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" '
        f'aria-hidden="true">{ICONS[name]}</svg>'
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


COLOURS = f"""\
:root {{ color-scheme: light; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {DARK} }} }}
:root[data-theme=dark] {{ color-scheme: dark; {DARK} }}
"""

HEAD = (
    f"<script>{_asset('page.js')}</script>\n"
    f"<style>\n{COLOURS}.report {{\n{PARTS}}}\n{_asset('page.css')}</style>"
)
"""What stands in every page's <head>; the script comes first, so that the right colours are there before
anything is painted."""
