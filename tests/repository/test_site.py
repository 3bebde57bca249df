"""The site: every page can be reached, and every film of the gallery is what its script makes."""

import re
import runpy
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from support import ROOT

DOCS = ROOT / "docs"
GALLERY = (DOCS / "gallery.md").read_text()


def pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def test_every_page_is_in_the_navigation():
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    assert all((DOCS / page).is_file() for page in listed)
    assert {str(path.relative_to(DOCS)) for folder in (DOCS, DOCS / "api") for path in folder.glob("*.md")} <= set(
        listed
    )


@pytest.fixture(scope="module")
def films():
    return SimpleNamespace(**runpy.run_path(str(DOCS / "img" / "films.py")))


def test_the_films_of_the_gallery(films):
    shown = re.findall(r"\(img/films/(\w+)\.gif\)", GALLERY)
    assert set(shown) == {path.stem for path in (DOCS / "img" / "films").glob("*.gif")}
    assert set(map(films.title, films.FILMS)) == set(shown)
    for env_id, film in films.FILMS.items():
        command = film.command(env_id, "runs")
        described = next(line for line in GALLERY.splitlines() if f"--env {env_id} " in line)
        assert described.strip("`").removesuffix("`</figcaption>") in command
        assert f"{film.steps:,} steps".replace(",", " ") in GALLERY


@pytest.mark.parametrize("path", sorted((DOCS / "img" / "films").glob("*.gif")), ids=lambda path: path.stem)
def test_a_film_is_small_and_moves(path):
    assert path.stat().st_size < 1e6
    slowest = 120 if path.stem.startswith("vizdoom") else 80  # ViZDoom shows every fourth tic of 1/35 s
    with Image.open(path) as film:
        assert film.n_frames >= 20
        assert 40 <= film.info["duration"] <= slowest


def test_a_film_keeps_what_is_rare_in_it(films, tmp_path):
    """A small red square on grey; half of the palette is for such."""
    frames = []
    for step in range(3):
        frame = Image.linear_gradient("L").convert("RGB")
        frame.paste((200, 20, 20), (10 * step, 10, 10 * step + 6, 16))
        frames.append(frame)
    films.save(frames, 60, 16, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        red, green, blue = film.convert("RGB").getpixel((3, 13))
    assert red > 150 > 60 > max(green, blue)
