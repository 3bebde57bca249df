"""How the package is built: imports point downwards, nothing goes round in circles, and files stay small."""

import ast
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
rooms = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "img" / "rooms.py")))
MODULES = rooms.modules()
#: Rooms that import torch and what comes with Python.
PURE = [module for module in MODULES if rooms.room_of(module) in rooms.PURE]


def test_rooms_import_downwards():
    assert rooms.circles(rooms.room_graph()) == []


def test_modules_import_in_no_circle():
    assert rooms.circles(rooms.module_graph()) == []


def test_circles_are_found():
    assert rooms.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


def test_the_door_and_the_command_stand_above_what_they_hand_on():
    height = rooms.floors(rooms.room_graph())
    assert max(height, key=height.__getitem__) == "cli"
    assert all(height[room] == 0 for room in ("projections", "table", "schedules", "random_state"))
    assert height["policies"] < height["rollouts"] < height["algorithms"] < height["seeds"] < height["study"]


@pytest.mark.parametrize("module", PURE)
def test_pure_rooms_import_torch_alone(module):
    room = f"{rooms.DOOR}.{rooms.room_of(module)}"
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                top = name.partition(".")[0]
                is_pure = any(name.startswith(f"{rooms.DOOR}.{pure}") for pure in rooms.PURE)
                assert top in ("torch", *sys.stdlib_module_names) or is_pure, f"{room} imports {name}"


def test_folders_say_what_they_are_and_do_nothing_else():
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), f"{module} has no docstring"
            assert not [node for node in tree.body if isinstance(node, ast.ClassDef)]


def test_files_and_functions_are_small():
    """Functions without their signatures and docstrings: constructors have one line for each argument, as SB3's."""
    for module, path in MODULES.items():
        text = path.read_text()
        assert text.count("\n") <= 350, f"{module} has more than 350 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                assert node.end_lineno - first.lineno < 45, f"{module}.{node.name} has more than 45 lines"


def test_no_prefix_stands_for_a_folder():
    """A word that several files of one folder begin with is a folder that has not been made."""
    siblings = {}
    for path in MODULES.values():
        if "_" in path.stem and path.name != "__init__.py":
            siblings.setdefault((path.parent, path.stem.partition("_")[0]), []).append(path.name)
    assert {key: files for key, files in siblings.items() if len(files) > 2} == {}


def test_the_drawing_is_of_these_rooms():
    drawing = (ROOT / "docs" / "img" / "rooms.svg").read_text()
    assert drawing == rooms.drawing(), "python docs/img/rooms.py draws it again"
