"""The page that shows a set before and after its cleaning; every word in it has been escaped."""

from collections.abc import Iterable
from importlib.resources import files

from pipeline.cleaning.manifest.coverage import SMALL, Attribute, Coverage, Group, Range
from pipeline.report.escape import text

BAR_PX, BAR_HEIGHT_PX = 150, 26
_UNEQUAL = {
    "rejected more": "left out more often than the rest",
    "rejected less": "left out less often than the rest",
    "restored more": "restored more often than the rest",
    "restored less": "restored less often than the rest",
}
_SHORT = {name: told.replace(" often than the rest", "") for name, told in _UNEQUAL.items()}
_HEADINGS = (
    ("group", ""), ("before", "images that could be read"), ("after", "images in the output"),
    ("shares", "of the set: before above, after below"),
    ("share before", ""), ("share after", ""),
    ("difference", "in points, with a 95 % interval"),
    ("restored", "share of the group whose restored face was taken, with a 95 % interval"),
    ("not accepted", "restored faces that were not taken"),
    ("left out", "share of the group, with a 95 % interval"),
)  # fmt: skip


def coverage_page(found: Coverage, out: str) -> str:
    """The whole page.

    Args:
        found: What is shown.
        out: How the user names the output folder.
    """
    template = files("pipeline.review").joinpath("assets", "coverage.html").read_text("utf-8")
    own = [each for each in found.attributes if each.is_field]
    measured = [each for each in found.attributes if not each.is_field]
    parts = {
        "$OUT": text(out),
        "$SUMMARY": _summary(found),
        "$UNEQUAL": _unequal([*own, *measured]),
        "$CONTENTS": _contents(found.attributes),
        "$MEASURED": "\n".join(map(_section, measured)),
        "$FIELDS": "\n".join(map(_section, own)) or "<p>None with few distinct values.</p>",
        "$SMALL": str(SMALL),
    }
    for name, part in parts.items():  # text of the set holds no name of a part: $ is escaped
        template = template.replace(name, part.replace("$", "&#36;"))
    return template


def _summary(found: Coverage) -> str:
    facts = (
        (found.total, "rows"), (found.before, "could be read: before"),
        (found.after, "in the output: after"), (found.restored, "of these restored"),
        (found.fallback, "not accepted, original kept"), (found.rejected, "left out"),
    )  # fmt: skip
    return "".join(f"<div><dt>{word}</dt><dd>{count:,}</dd></div>" for count, word in facts)


def _unequal(attributes: Iterable[Attribute]) -> str:
    """The groups that fared unlike the others."""
    items = [
        f'<li><a href="#{_anchor(attribute)}">{text(attribute.title)}: '
        f"<bdi>{text(group.label)}</bdi></a> {_fate(group)}</li>"
        for attribute in attributes
        for group in attribute.groups
        if group.unequal
    ]
    if not items:
        return "<p>No group was restored or left out more or less often than chance explains.</p>"
    return f"<ul>{''.join(items)}</ul>"


def _fate(group: Group) -> str:
    told = ", ".join(_UNEQUAL[each] for each in group.unequal)
    shares = (("restored", group.restored), ("left out", group.rejected))
    numbers = "; ".join(f"{word} {_percent(s.value)}" for word, s in shares if s is not None)
    return f"is {told} <small>({group.before:,} images; {numbers})</small>"


def _contents(attributes: Iterable[Attribute]) -> str:
    return " ".join(f'<a href="#{_anchor(a)}">{text(a.title)}</a>' for a in attributes)


def _anchor(attribute: Attribute) -> str:
    kind = "field" if attribute.is_field else "measured"
    return text(f"{kind}-{attribute.name.replace(' ', '-')}")


def _section(attribute: Attribute) -> str:
    head = "".join(
        f'<th scope="col"{_title(hint)}>{word}</th>'
        for word, hint in _HEADINGS
    )  # fmt: skip
    longest = max(max(g.share_before, g.share_after) for g in attribute.groups) or 1.0
    rows = "\n".join(_row(group, longest) for group in attribute.groups)
    notes = []
    if attribute.missing:
        notes.append(f"Not known of {attribute.missing:,} images, which are not counted here.")
    if attribute.follows:
        notes.append("After: a restored image counts where it is now.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return (
        f'<section id="{_anchor(attribute)}"><h3><bdi>{text(attribute.title)}</bdi></h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(attribute.title)}">'
        f'<table class="coverage"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n'
        f"</tbody></table></div>{note}</section>"
    )


def _title(hint: str) -> str:
    return f' title="{hint}"' if hint else ""


def _row(group: Group, longest: float) -> str:
    mark = "few" if group.is_small else "unequal" if group.unequal else ""
    said = '<small class="mark">few</small>' if group.is_small else ""
    told = ", ".join(_SHORT[each] for each in group.unequal)
    flags = f'<small class="mark">{told}</small>' if told else ""
    cells = (
        f"{group.before:,}", f"{group.after:,}", _bars(group, longest),
        _percent(group.share_before), _percent(group.share_after), _difference(group.difference),
        _rate(group.restored), f"{group.num_fallback:,}", _rate(group.rejected),
    )  # fmt: skip
    return (
        f'<tr class="{mark}"><th scope="row"><bdi>{text(group.label)}</bdi>{said}{flags}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _bars(group: Group, longest: float) -> str:
    """Both shares as bars, drawn here: nothing on the page may load or compute."""
    widths = [round(BAR_PX * s / longest, 1) for s in (group.share_before, group.share_after)]
    shares = f"{_percent(group.share_before)} before, {_percent(group.share_after)} after"
    return (
        f'<svg class="bars" width="{BAR_PX}" height="{BAR_HEIGHT_PX}" role="img" '
        f'aria-label="{shares}"><rect class="before" y="2" width="{widths[0]}" height="10"/>'
        f'<rect class="after" y="14" width="{widths[1]}" height="10"/></svg>'
    )


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def _difference(value: Range) -> str:
    sure = " sure" if value.low > 0 or value.high < 0 else ""
    return (
        f'<span class="value{sure}">{_points(value.value)}</span> '
        f"<small>{_points(value.low)} to {_points(value.high)}</small>"
    )


def _rate(share: Range | None) -> str:
    if share is None:
        return "\u2013"
    low, high = f"{100 * share.low:.1f}", f"{100 * share.high:.1f}"
    return f'<span class="value">{_percent(share.value)}</span> <small>{low} to {high}</small>'
