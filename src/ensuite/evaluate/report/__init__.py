"""A comparison as files: CSV for programs, Markdown for a pull request, one HTML page to look at."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from ensuite.errors import EnsuiteError
from ensuite.evaluate.compare import Comparison
from ensuite.evaluate.report.page import render_page
from ensuite.evaluate.report.tables import markdown, slices_csv, table_csv


def write_report(comparison: Comparison, out: Path) -> list[Path]:
    """Write table.csv, slices.csv, table.md and report.html into ``out``; return the files."""
    texts = {
        "table.csv": table_csv(comparison),
        "slices.csv": slices_csv(comparison),
        "table.md": markdown(comparison),
        "report.html": render_page(comparison),
    }
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            aside = out / f".{name}.{uuid.uuid4().hex[:8]}.partial"
            try:
                aside.write_text(text, encoding="utf-8")
                os.replace(aside, out / name)
            finally:
                aside.unlink(missing_ok=True)
            written.append(out / name)
    except OSError as error:
        raise EnsuiteError(f"{out}: the report cannot be written: {error.strerror or error}") from None
    return written
