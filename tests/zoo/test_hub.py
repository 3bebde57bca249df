"""``sb3-trl push-to-hub`` and ``load-from-hub``: what an agent's page says works, and gives the agent back."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch as th
import yaml

pytest.importorskip("rl_zoo3")

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError
from support import call

from .cases import ALGORITHMS, ENV, frames, mean_reward


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """The Hugging Face Hub: a folder; its client's four functions that would talk to it look there."""
    root = tmp_path_factory.mktemp("hub")

    def create_repo(self, repo_id, **kwargs):
        (root / repo_id).mkdir(parents=True)
        return f"https://huggingface.co/{repo_id}"

    def snapshot_download(self, repo_id, local_dir, **kwargs):
        shutil.copytree(root / repo_id, local_dir, dirs_exist_ok=True)

    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(repo_id, filename, **kwargs):
        if not (root / repo_id / filename).is_file():
            raise EntryNotFoundError(f"{filename} is not in {repo_id}")
        return str(root / repo_id / filename)

    for function in (create_repo, snapshot_download, upload_folder):
        monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    return root


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def weights(algo: str, path: str) -> dict[str, th.Tensor]:
    return ALGORITHMS[algo].load(path, device="cpu").policy.state_dict()


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all(th.equal(first[key], second[key]) for key in first)


def test_an_agent_goes_to_the_hub_and_comes_back_as_its_page_says(folder, hub, capsys):
    algo = "trpl"
    call(f"push-to-hub --algo {algo} --env {ENV} -f logs -orga me -n 40")
    repo = hub / "me" / f"{algo}-{ENV}"
    assert 40 <= len(frames(repo / "replay.mp4")) <= 42
    card = (repo / "README.md").read_text()
    results = json.loads((repo / "results.json").read_text())
    assert f"Return: **{results['mean_reward']:.2f} ± {results['std_reward']:.2f}**" in card
    assert f"{ALGORITHMS[algo].__name__} after 2,000 environment steps" in card
    assert (repo / re.search(r'<video [^>]*src="([^"]+)"', card)[1]).is_file()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["name"] == ALGORITHMS[algo].__name__
    assert {ENV, "sb3-trl"} <= set(metadata["tags"])

    playing, training = blocks(card, "bash")
    install, load, enjoy, film, export = playing.splitlines()
    assert install == 'pip install "sb3-trl[zoo,export]"'
    assert load.startswith("TRUST_REMOTE_CODE=True sb3-trl ")
    call(load.partition(" sb3-trl ")[2])
    original, back = f"logs/{algo}/{ENV}_2/{ENV}.zip", f"downloaded/{algo}/{ENV}_1/{ENV}.zip"
    assert same(weights(algo, original), weights(algo, back))

    capsys.readouterr()
    returns = []
    for words in (enjoy.removeprefix("sb3-trl "), f"enjoy --algo {algo} --env {ENV} -f logs"):
        call(f"{words} -n 400 --no-render")
        returns.append(mean_reward(capsys.readouterr().out))
    assert returns[0] == returns[1]
    call(film.removeprefix("sb3-trl ") + " -n 5")
    assert list(Path("downloaded").rglob("*.mp4"))
    assert export == f"sb3-trl export --algo {algo} --env {ENV} -f downloaded --format onnx"

    (program,) = blocks(card, "python")
    exec(program, {})
    assert f"return {results['mean_reward']:.2f} ± {results['std_reward']:.2f}\n" in capsys.readouterr().out

    (settings,) = blocks(card, "yaml")
    Path("settings.yml").write_text(settings)
    assert (repo / "settings.yml").read_text() == settings
    assert training.startswith("sb3-trl train ")
    call(training.removeprefix("sb3-trl ") + " -f again --device cpu --eval-freq -1")
    assert same(weights(algo, original), weights(algo, f"again/{algo}/{ENV}_1/{ENV}.zip")), "the same training"


def test_an_agent_under_another_name(folder, hub):
    """Of another algorithm."""
    call(f"push-to-hub --algo fixpo --env {ENV} -f logs -orga me -name swing --no-render")
    load = next(line for line in (hub / "me" / "swing" / "README.md").read_text().splitlines() if "load-from" in line)
    call(load.partition(" sb3-trl ")[2])
    original, back = f"logs/fixpo/{ENV}_2/{ENV}.zip", f"downloaded/fixpo/{ENV}_1/{ENV}.zip"
    assert same(weights("fixpo", original), weights("fixpo", back))


def test_an_agent_without_normalisation_comes_back(folder, hub, capsys):
    call(f"push-to-hub --algo trpl --env {ENV} -f logs -orga me --no-render")
    repo = hub / "me" / f"trpl-{ENV}"
    assert "<video" not in (repo / "README.md").read_text(), "there is no film"
    (repo / "vec_normalize.pkl").unlink()
    call(f"load-from-hub --algo trpl --env {ENV} -orga me -f downloaded")
    assert "No normalization file" in capsys.readouterr().out
    assert (folder / "downloaded" / "trpl" / f"{ENV}_1" / f"{ENV}.zip").is_file()


def test_the_hub_wants_to_be_trusted(folder, hub, monkeypatch, capsys):
    monkeypatch.delenv("TRUST_REMOTE_CODE")
    with pytest.raises(SystemExit):
        call(f"load-from-hub --algo trpl --env {ENV} -orga me -f downloaded")
    assert "TRUST_REMOTE_CODE" in capsys.readouterr().err
