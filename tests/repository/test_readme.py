"""What README.md and docs/ say: every Python block and every ``sb3-trl`` command runs, every name exists.

Python blocks run as they stand, except that ``learn`` ends after one update with one epoch. Commands run as they
stand, with flags added that make them short.
"""

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from support import ROOT, make_model, train_and_record

import sb3_trl
from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL, TRPLPolicy
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.cli import COMMANDS as COMMANDS_OF_THE_ZOO
from sb3_trl.study import SeedBatch

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "api").glob("*.md"))]
README = PAGES[0].read_text()
TENSORBOARD_PAGE = (ROOT / "docs" / "tensorboard.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page.read_text(), "python"))
]
COMMANDS = [line for block in blocks(README, "bash") for line in block.splitlines()]


@pytest.mark.parametrize("block", PYTHON)
def test_python_block(block, monkeypatch, tmp_path):
    def learn(original):
        def one_update(model, total_timesteps, *args, **kwargs):
            assert total_timesteps >= 10_000 or isinstance(model, LeanPPO), "whose learn calls PPO's"
            model.n_epochs = model.n_critic_epochs = 1
            return original(model, 1, *args, **kwargs)

        return one_update

    def learn_seeds(original):
        def one_update(batch, total_timesteps, *args, **kwargs):
            assert total_timesteps >= 10_000
            batch.compile = False
            for model in batch.models:
                model.n_steps = model.rollout_buffer.buffer_size = 64
                model.n_epochs = model.n_critic_epochs = 1
            return original(batch, 1, *args, **kwargs)

        return one_update

    for algorithm in (TrustRegionAlgorithm, PPO):
        monkeypatch.setattr(algorithm, "learn", learn(algorithm.learn))
    monkeypatch.setattr(SeedBatch, "learn", learn_seeds(SeedBatch.learn))
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


def shortened(command: str) -> list[str]:
    """Return the words of a command that takes seconds: one update of 64 steps, no window."""
    words = shlex.split(command)
    if words[1] == "train":
        short = ["n_steps:64", "batch_size:32", "n_epochs:1", "n_critic_epochs:1"]
        position = words.index("-params") + 1 if "-params" in words else len(words)
        words[position:position] = short if "-params" in words else ["-params", *short]
        words += ["-n", "64", "--eval-freq", "-1", "--device", "cpu"]
    if words[1] == "enjoy":
        words += ["-n", "10"]
    return words


def test_commands(run):
    for command in COMMANDS:  # in one folder, one after the other: the second plays what the first has trained
        program, *words = shortened(command)
        assert program == "sb3-trl"
        code, printed, error = run(words)
        assert code == 0, f"{command}\n{printed}{error}"


ZOO_PAGE = (ROOT / "docs" / "rl_zoo.md").read_text()


def commands_of(page: Path) -> list[str]:
    """Return the ``sb3-trl`` commands with flags that a page names, in blocks and in its text."""
    text = page.read_text()
    lines = [line for block in blocks(text, "(?:bash)?") for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`(sb3-trl [^`]+)`", text)
    lines = [line.removeprefix("TRUST_REMOTE_CODE=True ").partition("  #")[0] for line in lines]
    return [line for line in lines if re.match(r"sb3-trl [a-z-]+ .*-", line)]


@pytest.mark.parametrize("command", sorted({line for page in PAGES for line in commands_of(page)}))
def test_the_flags_of_a_command_exist(command, run):
    words = shlex.split(command.replace("…", "").removesuffix("\\"))
    code, printed, _ = run(f"{words[1]} --help")
    assert code == 0
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", printed))
    assert {word for word in words[2:] if word.startswith("-")} <= known


def test_every_command_is_documented():
    assert set(COMMANDS_OF_THE_ZOO) <= set(re.findall(r"sb3-trl ([\w-]+)", ZOO_PAGE))
    table = ZOO_PAGE.split("\n\n")[2]
    assert set(COMMANDS_OF_THE_ZOO) == set(re.findall(r"`([\w-]+)`", table))


# --- names ---


def test_every_file_of_settings_is_documented():
    files = {path.name for path in (ROOT / "hyperparams").glob("*.yml")}
    table = ZOO_PAGE[ZOO_PAGE.index("| file | algorithm | settings |") :].split("\n\n")[0]
    assert files == set(re.findall(r"`(\w+\.yml)`", table))


def test_every_log_key_is_documented():
    page = TENSORBOARD_PAGE
    table = page[page.index("| key | meaning |") : page.index("To draw PPO or TRPO")]
    trpl = train_and_record(make_model(hard=True, entropy_schedule="exp", entropy_first=True), 1)[0]
    fixpo = FixPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64).logger.name_to_value
    papi = PAPI("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").learn(64).logger.name_to_value
    keys = {key for key in (*trpl, *fixpo, *papi) if key.startswith(("trust_region/", "fixpo/", "papi/"))}
    assert len(keys) > 15
    for key in keys:
        prefix, _, name = key.partition("/")
        rows = [row for row in table.splitlines() if row.startswith(f"| `{prefix}/")]
        names = {match for row in rows for match in re.findall(r"`(?:\w+/)?(\w+)`", row.split("|")[1])}
        names |= {name.removesuffix("_mean") + "_max" for name in names if name.endswith("distance_mean")}
        assert name in names, key


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}


@pytest.mark.parametrize(
    ("page", "heading", "cls", "base"),
    [
        ("trpl", "`TRPL(", TRPL, PPO),
        ("trpl", "`policy_kwargs`", TRPLPolicy, None),
        ("fixpo", "`FixPO(", FixPO, PPO),
        ("papi", "`PAPI(", PAPI, PPO),
        ("recurrent", "Different or new", RecurrentFixPO, FixPO),
        ("recurrent", "Different or new", RecurrentTRPL, TRPL),
        ("recurrent", "Different or new", LeanRecurrentPPO, RecurrentPPO),
    ],
)
def test_every_parameter_is_documented(page, heading, cls, base):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    table = text[text.index(heading) :].split("\n\n")[1]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    documented = {name: default.strip() for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    signature = parameters(cls)
    if page == "recurrent":  # one table for three classes, of which one alone has a fixup phase
        documented = {name: default for name, default in documented.items() if name in signature}
        assert {"n_steps", "batch_size", "sequence_length"} <= documented.keys()
    assert documented.keys() <= signature.keys()
    if base is not None:
        assert signature.keys() - documented.keys() <= parameters(base).keys()
    for name, default in documented.items():
        if cls is TRPL and name in (
            "mean_bound",
            "cov_bound",
            "kl_bound",
        ):  # None in the signature: those of the projection
            continue
        values = dict(zip(("gamma", "gae_lambda"), default.split(", "), strict=False))
        value = values.get(name, default).strip("`")
        expected = signature[name].default
        if expected is not inspect.Parameter.empty:
            assert value == str(expected) or eval(value) == expected, name


def names_of(page: Path) -> list[str]:
    return re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)


def test_every_public_name_is_in_the_api_reference():
    described = [name for page in (ROOT / "docs" / "api").glob("*.md") for name in names_of(page)]
    assert len(described) == len(set(described))
    public = {f"sb3_trl.{name}" for name in sb3_trl.__all__ if not name.startswith("__")}
    for room in ("envs", "penalty", "policies", "projections", "study", "zoo"):
        public |= {f"sb3_trl.{room}.{name}" for name in import_module(f"sb3_trl.{room}").__all__}
    # The same class under another name.
    public -= {"sb3_trl.TRPLPolicy", "sb3_trl.ProjectedGaussianDistribution", "sb3_trl.study.SeedBatch"}
    public -= {f"sb3_trl.policies.{name}Policy" for name in ("Mlp", "Cnn", "MultiInput")}
    assert set(described) == public


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_and_examples_exist(page):
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for script in re.findall(r"(?:examples|benchmarks)/\w+\.py", text):
        assert (ROOT / script).is_file(), script
