"""Workers that share a count of passes, begun in every order that a loader can bring about."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from dim.runtime.errors import BadValueError
from dim.torch import epochs as module
from dim.torch.epochs import Epochs

Begin = Callable[[int | None, int, int], int]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[[Epochs], Begin]:
    def bind(epochs: Epochs) -> Begin:
        def call(worker: int | None, workers: int, base_seed: int) -> int:
            info = (
                worker if worker is None else SimpleNamespace(id=worker, num_workers=workers, seed=base_seed + worker)
            )
            monkeypatch.setattr(module, "get_worker_info", lambda: info)
            return epochs.begin()

        return call

    return bind


def test_workers_agree_in_every_order(begin: Callable[[Epochs], Begin]) -> None:
    for orders in itertools.product(itertools.permutations(range(3)), repeat=3):
        for seeds in ((5, 5, 5), (5, 2**62, -(2**40)), (5, 6, 5)):
            epochs = Epochs()
            for epoch, (order, seed) in enumerate(zip(orders, seeds, strict=True)):
                assert {begin(epochs)(worker, 3, seed) for worker in order} == {epoch}


def test_a_worker_that_never_began_joins_the_others(begin: Callable[[Epochs], Begin]) -> None:
    for order in itertools.permutations(range(3)):
        epochs = Epochs()
        call = begin(epochs)
        assert call(0, 3, 11) == 0  # the loop was left before workers 1 and 2 had begun
        assert {call(worker, 3, 12) for worker in order} == {1}
        assert {call(worker, 3, 13) for worker in order} == {2}


def test_more_workers_fewer_workers_and_none(begin: Callable[[Epochs], Begin]) -> None:
    epochs = Epochs()
    call = begin(epochs)
    assert {call(worker, 2, 1) for worker in (1, 0)} == {0}
    assert call(None, 0, 0) == 1 and call(None, 0, 0) == 2
    assert {call(worker, 4, 2) for worker in (3, 1, 0, 2)} == {3}
    assert {call(worker, 2, 3) for worker in (1, 0)} == {4}
    assert {call(worker, 4, 4) for worker in (2, 0, 1, 3)} == {5} and epochs.next == 6


def test_two_loaders_at_once_get_two_passes(begin: Callable[[Epochs], Begin]) -> None:
    epochs = Epochs()
    call = begin(epochs)
    assert (call(0, 2, 1), call(0, 2, 9), call(1, 2, 9)) == (0, 1, 1)
    assert call(1, 2, 1) >= 1  # its fellow's word is gone: another pass, never one that was seen


def test_a_set_epoch_holds_for_workers_that_live_on(begin: Callable[[Epochs], Begin]) -> None:
    epochs = Epochs()
    call = begin(epochs)
    for epoch in (4, 0, 2**32 - 2):
        epochs.set(epoch)
        assert epochs.next == epoch and {call(worker, 3, 8) for worker in (2, 0, 1)} == {epoch}


def test_too_many_workers(begin: Callable[[Epochs], Begin]) -> None:
    with pytest.raises(BadValueError, match="There are 1,025 loader workers; at most 1,024 share."):
        begin(Epochs())(0, 1025, 0)
