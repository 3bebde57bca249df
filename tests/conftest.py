import gc
import getpass
import os
import sys
import tempfile

import pytest
import torch as th

th.set_num_threads(1)

if "ATEN_CPU_CAPABILITY" in os.environ:  # torch keeps what it has compiled, and does not ask for which vectors
    folder = f"torchinductor_{getpass.getuser()}_{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), folder))


def pytest_addoption(parser):
    parser.addoption("--inductor", action="store_true", help="compile to C++ where tests marked `traced` only trace")


def pytest_configure(config):
    config.addinivalue_line("markers", "traced: compiled functions run the graphs that were traced, unless --inductor")
    config.addinivalue_line("markers", "further: with --inductor alone, as traced by the same lines as the other cases")


def pytest_collection_modifyitems(config, items):
    """Tracing takes a second for every graph: of cases that differ in little, one is traced, and all are compiled."""
    if not config.getoption("--inductor"):
        further = [item for item in items if item.get_closest_marker("further")]
        config.hook.pytest_deselected(items=further)
        items[:] = [item for item in items if not item.get_closest_marker("further")]


def pytest_collection_finish():
    """Look for garbage seldom, and not among the million objects of imported modules, which takes half a second."""
    import torch._dynamo  # noqa: F401  which the first optimiser would import

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def _traced(request, monkeypatch):
    """C++ for one graph takes seconds. What differs from one function to the next is how it is traced."""
    if request.node.get_closest_marker("traced") is None or request.config.getoption("--inductor"):
        return
    monkeypatch.setattr("sb3_trl.steps.compilation._code", lambda graph, examples, options: graph.forward)


@pytest.fixture(autouse=True, scope="session")
def _folder_of_sb3(tmp_path_factory):
    """SB3 makes a folder for every training that names none; here, one for all of them, which pytest removes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, whichever ran before it."""
    th.manual_seed(0)


@pytest.fixture
def torch_keeps_its_settings(monkeypatch):
    """Torch's distributions are everybody's: whether they look at their arguments is not changed, for no moment."""

    def fail(value: bool) -> None:
        raise AssertionError("torch's distributions are everybody's")

    # Torch sets it to False itself, once, when something is compiled.
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
    monkeypatch.setattr(th.distributions.Distribution, "set_default_validate_args", staticmethod(fail))
    yield
    assert th.distributions.Distribution._validate_args


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run ``sb3-trl`` in a folder of its own; return its exit status and what it printed."""
    rl_zoo3_train = pytest.importorskip("rl_zoo3.train")
    from sb3_trl import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rl_zoo3_train, "ExperimentManager", rl_zoo3_train.ExperimentManager)

    def call(line: str | list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sb3-trl", *(line.split() if isinstance(line, str) else line)])
        code = 0
        try:
            cli.main()
        except SystemExit as status:
            code = status.code
        return code, *capsys.readouterr()

    threads = th.get_num_threads()
    yield call
    th.set_num_threads(threads)
