"""A function of batches, recorded once for each size of theirs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch

from dens_plugin.graphs.static_batch import StaticBatch
from dens_plugin.padding.signature import Signature, signature, with_tensors

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from dens_plugin.graphs.capture import Recorder, Recording

Result = TypeVar("Result")

_MOST = 12  # signatures that are recorded: each takes a second, and memory where it is the largest so far
_WARM_UP = 3  # ordinary calls before the first recording; one for each further signature
_TRIES = 2  # of a signature's watched calls, of which the first may make constants


class _Recorded(NamedTuple):
    static: StaticBatch
    recording: Recording


class Recordings(Generic[Result]):
    """Calls of a function of a batch, by recordings where there are some.

    The first calls are ordinary ones, which compile kernels and make constants. The last of them is watched for
    whatever would wait for the device, since a recording that fails leaves CUDA in disorder.

    Args:
        function: from a batch to tensors, in tuples and dictionaries.
        recorder: of the device.
        device: where batches are to be.
        before: what a batch on the device needs that is not recorded.
        seed: seeds what the function draws; by default it goes on in the device's random numbers.
        what: is computed, for the log.

    Attributes:
        is_recording: whether the function is being recorded now.
    """

    def __init__(
        self,
        function: Callable[[Batch], Result],
        recorder: Recorder,
        device: torch.device,
        *,
        before: Callable[[Batch], None] = lambda _batch: None,
        seed: Callable[[], None] = lambda: None,
        what: str,
    ) -> None:
        self._function, self._recorder, self._device = function, recorder, device
        self._before, self._seed, self._what = before, seed, what
        self._ordinary = 0  # calls without a recording
        self._asking: Counter[Signature] = Counter()  # watched calls that waited
        self._fit: set[Signature] = set()  # of a watched call that did not
        self._recorded: dict[Signature, _Recorded] = {}
        self._has_told = self._is_off = self.is_recording = False

    def __call__(self, batch: Batch) -> Result:
        """What the function returns, in tensors that stay as they are."""
        key = signature(batch)
        if key not in self._recorded and self._may_record(key):
            static = StaticBatch(batch, self._device)
            recording = self.record(lambda: self._function(static.batch))
            if recording is not None:
                self._recorded[key] = _Recorded(static, recording)
        known = self._recorded.get(key)
        if known is None:
            return self._ordinarily(key, batch.to(self._device, non_blocking=True))
        known.static.fill(batch)
        self._before(known.static.batch)
        self._seed()
        known.recording.replay()
        # Before another recording writes into the same memory
        copied: Result = with_tensors(known.recording.outputs, torch.Tensor.clone)
        return copied

    def __len__(self) -> int:
        return len(self._recorded)

    def forget(self) -> None:
        """Record anew."""
        self._recorded.clear()

    def record(self, function: Callable[[], Any]) -> Recording | None:
        """A recording that belongs to these; None, and a line in the log, where it fails."""
        self.is_recording = True
        try:
            return self._recorder.record(function)
        except RuntimeError as error:
            self._is_off = True
            self._tell(f"{self._what} could not be recorded ({_first_line(error)}); set optim.cuda_graph: false")
            return None
        finally:
            self.is_recording = False

    def _ordinarily(self, key: Signature, batch: Batch) -> Result:
        self._before(batch)
        self._seed()
        self._ordinary += 1
        is_watched = self._ordinary >= _WARM_UP and key not in self._fit and self._asking[key] < _TRIES
        with self._recorder.beside():
            if is_watched and not self._is_off:
                state = self._recorder.random_state()
                try:
                    with self._recorder.watched():
                        found = self._function(batch)
                    self._fit.add(key)
                    return found
                except RuntimeError as error:
                    self._recorder.set_random_state(state)
                    self._asking[key] += 1
                    if self._asking[key] == _TRIES:
                        self._tell(f"{self._what} waits for the device ({_first_line(error)}), and is not recorded")
            return self._function(batch)

    def _may_record(self, key: Signature) -> bool:
        if self._is_off or key not in self._fit:
            return False
        if len(self._recorded) < _MOST:
            return True
        self._is_off = True
        self._tell(f"batches have more than {_MOST} sizes, and those of further ones are computed without")
        return False

    def _tell(self, what: str) -> None:
        """Once."""
        if not self._has_told:
            logging.warning(f"CUDA graphs: {what}.")
        self._has_told = True


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
