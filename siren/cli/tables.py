"""How verbs print tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def figure(value: object) -> str:
    if value is None:
        return "0"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of figures to the right, all others to the left."""
    table = Table()
    for number, column in enumerate(columns):
        figures = number and all(row[number][:1].isdigit() or not row[number] for row in rows)
        table.add_column(escape(column), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def print_columns(columns: list[str], rows: list[list[str]]) -> None:
    """A table whose cells stay whole however narrow the terminal is: for hashes and ids, to be copied or searched."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
