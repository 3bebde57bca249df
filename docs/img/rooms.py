"""Draw the rooms of the package and which of them import which, from the code itself: ``docs/img/rooms.svg``.

    python docs/img/rooms.py

A room is a folder or a module of ``sb3_trl``; an arrow means that something in one imports something in the other,
wherever the statement stands. Arrows that a longer way implies are left out of the drawing.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from xml.sax.saxutils import escape

PACKAGE = Path(__file__).parents[2] / "sb3_trl"
#: The package itself, which hands on names.
DOOR = "sb3_trl"

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Return the files of the package by module name."""
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(module: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == DOOR:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def module_graph() -> Graph:
    """Return which module imports which."""
    known = modules()
    return {module: set(imports(module, known)) - {module} for module in known}


def room_of(module: str) -> str:
    """Return the folder or module directly below the package that a module belongs to."""
    return module.split(".")[1] if "." in module else DOOR


def room_graph() -> Graph:
    """Return which room imports which."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, others in module_graph().items():
        graph[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the ways along arrows that lead back to where they start, one for each arrow that closes one."""
    found, done = [], set()

    def walk(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for other in sorted(graph[node]):
                walk(other, [*way, node])
            done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


def floors(graph: Graph) -> dict[str, int]:
    """Return how many rooms stand below each at most, one below the other; of a graph without circles."""
    height: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((of(other) for other in graph[node]), default=-1)
        return height[node]

    return {node: of(node) for node in graph}


def direct_arrows(graph: Graph) -> list[tuple[str, str]]:
    """Return the arrows that no longer way implies."""

    def below(node: str) -> set[str]:
        return graph[node].union(*map(below, graph[node]))

    return [
        (node, other)
        for node in sorted(graph)
        for other in sorted(graph[node])
        if not any(other in below(way) for way in graph[node] - {other})
    ]


# --- the drawing ---

WIDTH, HEIGHT, GAP, RISE = 200, 60, 18, 40
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1b2a41 } .small { font-size: 10px; fill: #5b6b82 }
  rect { fill: #e8f0f8; stroke: #5b7ca3 } .pure rect { fill: #f6ead2; stroke: #b08a3e }
  path { stroke: #8b98ab; fill: none } marker path { fill: #8b98ab; stroke: none }
  .paper { fill: #fff; stroke: none }"""
#: Rooms that know nothing of Stable-Baselines3.
PURE = ("projections", "penalty", "table", "random_state")


def summary(room: str) -> list[str]:
    """Return what a room's docstring says it is, in two lines."""
    known = modules()
    module = room if room == DOOR else f"{DOOR}.{room}"
    text = ast.get_docstring(ast.parse(known[module].read_text())) or ""
    return wrap(" ".join(text.split("\n\n")[0].split()).replace("``", ""), WIDTH // 6, max_lines=2, placeholder=" …")


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return the centre of every room: floors from the ground up, on each the order that shortens the arrows."""
    height = floors(graph)
    rows: list[list[str]] = [
        sorted(n for n in graph if height[n] == level) for level in range(max(height.values()) + 1)
    ]
    width = max(map(len, rows)) * (WIDTH + GAP) + GAP

    def spread(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
        return {
            node: (width * (2 * i + 1) / (2 * len(row)), (len(rows) - level - 0.5) * (HEIGHT + RISE))
            for level, row in enumerate(rows)
            for i, node in enumerate(row)
        }

    neighbours = {n: [*graph[n], *(m for m in graph if n in graph[m])] for n in graph}
    for _ in range(20):
        at = spread(rows)
        rows = [
            sorted(row, key=lambda n: (sum(at[m][0] for m in neighbours[n]) / max(len(neighbours[n]), 1), n))
            for row in rows
        ]
    return spread(rows)


def drawing() -> str:
    """Return the picture as SVG."""
    graph = room_graph()
    at = places(graph)
    width = max(x for x, _ in at.values()) + WIDTH / 2 + GAP
    height = max(y for _, y in at.values()) + HEIGHT / 2 + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
        ' aria-label="The rooms of sb3_trl and which import which">',
        f"<style>{STYLE}\n</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
    ]
    for node, other in direct_arrows(graph):
        (x, y), (to_x, to_y) = at[node], at[other]
        start, end = y + HEIGHT / 2, to_y - HEIGHT / 2
        middle = (end - start) / 2
        lines.append(
            f'<path marker-end="url(#tip)" d="M{x:.0f} {start:.0f} C{x:.0f} {start + middle:.0f} '
            f'{to_x:.0f} {end - middle:.0f} {to_x:.0f} {end:.0f}"/>'
        )
    for node, (x, y) in sorted(at.items()):
        kind = ' class="pure"' if node in PURE else ""
        name = "__init__" if node == DOOR else node
        lines += [
            f"<g{kind}>",
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>',
            f'<text x="{x:.0f}" y="{y - 11:.0f}" text-anchor="middle">{escape(name)}</text>',
            *(
                f'<text x="{x:.0f}" y="{y + 5 + 13 * i:.0f}" text-anchor="middle" class="small">{escape(line)}</text>'
                for i, line in enumerate(summary(node))
            ),
            "</g>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("rooms.svg").write_text(drawing())
