"""The pieces that pages are built of. All texts are text nodes: none of them is ever read as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nicegui import ui

Cell = Any
"""Of a table: a text, or what draws it, called without arguments."""


@contextmanager
def card(title: str = "", classes: str = "") -> Iterator[ui.element]:
    """A box with a heading; what is made within is in it."""
    with ui.element("section").classes(f"card {classes}") as made:
        if title:
            heading(title)
        yield made


@contextmanager
def cards(kind: str = "") -> Iterator[ui.element]:
    """Boxes beside each other, as many as fit. `kind`: "small", "wide" or ""."""
    with ui.element("div").classes(f"cards {kind}") as made:
        yield made


def heading(title: str) -> None:
    """The heading of a part of the page."""
    with ui.element("h2"):
        ui.label(title)


def figure(name: str, value: str, more: str = "") -> None:
    """One number with its name above and a remark below."""
    with ui.element("div").classes("figure"):
        ui.label(name).classes("name")
        ui.label(value).classes("value")
        if more:
            ui.label(more).classes("more")


def badge(said: str, kind: str = "") -> ui.element:
    """A word in a pill. `kind`: "good", "warn", "bad", "accent" or ""."""
    return ui.label(said).classes(f"badge {kind}")


def soft(said: str) -> ui.element:
    """A remark."""
    return ui.label(said).classes("soft small-text")


def empty(said: str) -> None:
    """What stands where there is nothing to show."""
    ui.label(said).classes("empty")


def notice(said: str, kind: str = "", icon: str = "info_outline") -> None:
    """A box with a sentence. `kind`: "good", "warn", "bad" or ""."""
    with ui.element("div").classes(f"notice {kind}"):
        ui.icon(icon).props('aria-hidden="true"')
        ui.label(said)


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], numeric: Sequence[int] = ()) -> None:
    """A table; `numeric`: numbers of the columns that stand right."""
    with (
        ui.element("div").classes("table many" if len(heads) > 4 else "table").props('tabindex="0"'),
        ui.element("table"),
    ):
        with ui.element("thead"), ui.element("tr"):
            for at, head in enumerate(heads):
                with ui.element("th").classes("n" if at in numeric else "").props('scope="col"'):
                    ui.label(head)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for at, cell in enumerate(row):
                        with ui.element("td").classes("n" if at in numeric else ""):
                            if isinstance(cell, str):
                                ui.label(cell)
                            else:
                                cell()
