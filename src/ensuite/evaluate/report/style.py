"""The look of the report: light and dark, one colour per run in every chart."""

LIGHT = """\
  --bg: #f6f7f9; --card: #ffffff; --fg: #1a1f2b; --muted: #667085; --grid: #e8ebf0; --axis: #b4bcc8; --rule:
  #e2e6ec;
  --tint: #f1f5ff; --good: #0a7f5a; --bad: #b3412c;
  --s0: #3b6fe0; --s1: #e07a2f; --s2: #129a7d; --s3: #b14cc4; --s4: #c9a40c; --s5: #d6446b; --s6: #2d9cc4;
  --s7: #7a6a5d;
"""
"""The colours by day, as CSS variables."""

DARK = """\
    --bg: #10131a; --card: #181c26; --fg: #e7eaf1; --muted: #98a2b5; --grid: #272d3a; --axis: #4a5364;
    --rule: #2a303d;
    --tint: #1d2538; --good: #4fcf9f; --bad: #f08b73;
    --s0: #7da2ff; --s1: #f5a35c; --s2: #3fcaa9; --s3: #d58ae6; --s4: #e3c544; --s5: #f57f9e; --s6: #68c6ea;
    --s7: #b3a294;
"""
"""The same variables by night."""

PARTS = """\
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; font-weight: 680; }
h2 { font-size: 15px; margin: 0 0 2px; font-weight: 640; }
p { margin: 0 0 8px; }
.lead { color: var(--muted); margin-bottom: 26px; max-width: 100ch; }
.lead strong { color: var(--fg); font-weight: 600; }
.hint { color: var(--muted); font-size: 13px; margin-bottom: 10px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 18px 20px;
min-width: 0; } .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px),
1fr)); gap: 18px; margin-top: 18px; } .wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; margin: 0 -20px; padding: 0 20px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th {
  text-align: right; font-size: 12.5px; font-weight: 560; color: var(--muted); padding: 6px 12px;
  white-space: nowrap; border-bottom: 1px solid var(--rule); vertical-align: bottom;
}
td { text-align: right; padding: 9px 12px; white-space: nowrap; border-bottom: 1px solid var(--grid);
vertical-align: top; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td small { display: block; color: var(--muted); font-size: 12px; line-height: 1.35; }
td b { font-weight: 680; }
.run { font-weight: 600; }
.chip { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.good { color: var(--good); } .bad { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 6px; font-size: 12.5px; color:
var(--muted); } .legend .chip { margin-right: 6px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit; fill: var(--muted); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg text.label { font-size: 12px; } svg text.name { fill: var(--fg); font-size: 12.5px; }
svg text.value { fill: var(--fg); font-size: 12.5px; font-weight: 600; }
svg .grid { stroke: var(--grid); stroke-width: 1; } svg .axis { stroke: var(--axis); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .leader { stroke-width: 1; opacity: .7; }
svg .whisker { stroke-width: 2.5; stroke-linecap: round; opacity: .55; }
svg .error { stroke: var(--fg); stroke-width: 1.2; opacity: .55; pointer-events: none; }
svg .aim { fill: transparent; } svg .dot:hover circle:last-child { stroke: var(--card); stroke-width: 2; r:
6.5px; } svg .bar rect { opacity: .9; } svg .bar:hover rect { opacity: 1; }
details { margin-top: 18px; } summary { cursor: pointer; font-weight: 600; font-size: 15px; }
details table { margin-top: 10px; font-size: 13px; } details td { padding: 5px 12px; }
ul { margin: 8px 0 0; padding-left: 18px; } li { margin: 3px 0; max-width: 110ch; }
code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { color: var(--muted); font-size: 12.5px; margin-top: 26px; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
"""How the report's own parts look: headings, cards, tables, charts."""

STYLE = f"""\
:root {{
  color-scheme: light dark;
{LIGHT}}}
@media (prefers-color-scheme: dark) {{
  :root {{
{DARK}  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans",
  sans-serif;
}}
main {{ max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }}
{PARTS}"""
"""The style sheet of a report that is a page of its own."""
