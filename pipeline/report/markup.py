"""Pieces of HTML. What goes in has been through `escape`."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


def asset(name: str) -> str:
    """A template, style sheet or script of the report."""
    return files("pipeline.report").joinpath("assets", name).read_text(encoding="utf-8")


def page(*, title: str, policy: str, head: str, attributes: str, body: str, scripts: str) -> str:
    """A whole page; `policy` is what it may load."""
    return Template(asset("page.html")).substitute(
        title=title,
        policy=f"{POLICY}; {policy}",
        head=head,
        attributes=attributes,
        body=body,
        scripts=scripts,
    )


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of a page with a heading and an anchor; "" where there is nothing to say."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{body}\n</section>' if body else ""


def details(summary: str, *parts: str) -> str:
    """Something folded away."""
    body = "\n".join(part for part in parts if part)
    return f"<details><summary>{summary}</summary>\n{body}\n</details>" if body else ""


def table(
    label: str, head: Sequence[str], rows: Iterable[str], *, caption: str = "", kind: str = ""
) -> str:
    """A table that scrolls sideways inside its frame.

    Args:
        label: What a screen reader calls it.
        head: Header cells.
        rows: Rows, as `row` makes them.
        caption: Under the table.
        kind: Further classes.
    """
    body = "\n".join(rows)
    if not body:
        return ""
    top = f"<thead><tr>{''.join(head)}</tr></thead>\n" if head else ""
    told = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="table"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{label}"><table class="{kind}">\n{top}'
        f"<tbody>\n{body}\n</tbody></table></div>{told}</figure>"
    )


def heading(content: str, *, order: str = "", first: str = "desc", title: str = "") -> str:
    """A header cell.

    Args:
        content: What stands in it.
        order: "text" or "number" for a column that can be sorted by it, else "".
        first: Direction of the first click, "asc" or "desc".
        title: Told when pointed at.
    """
    told = f' title="{title}"' if title else ""
    if not order:
        return f'<th scope="col"{told}>{content}</th>'
    return (
        f'<th scope="col" data-order="{order}" data-first="{first}" aria-sort="none"{told}>'
        f'<button type="button">{content}</button></th>'
    )


def row(name: str, cells: Iterable[str], *, kind: str = "", value: str = "") -> str:
    """A row: a header cell and others that are cells already; `value` is what it is sorted by."""
    mark = f' class="{kind}"' if kind else ""
    key = f' data-value="{value}"' if value else ""
    return f'<tr{mark}><th scope="row"{key}>{name}</th>{"".join(cells)}</tr>'


def cell(content: str, *, kind: str = "", value: str = "") -> str:
    """A cell; `value` is what the table is sorted by."""
    mark = f' class="{kind}"' if kind else ""
    key = f' data-value="{value}"' if value else ""
    return f"<td{mark}{key}>{content}</td>"


def bullets(lines: Iterable[str], kind: str = "") -> str:
    """A list; "" for none."""
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""
