"""Key-value caches of a rollout: each prompt's keys and values, copied to its G completions.

`RoomyLayer` hands out the columns written so far, a slice that grows with every token. `FixedLayer`
hands out all of its columns, so that no shape changes from token to token and a decode step can be
compiled; a mask hides what is not written yet.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _CopiedLayer(DynamicLayer):
    """One layer's keys and values, each row `repeats` times over and with room for more columns."""

    keys: Any
    values: Any

    def __init__(self, layer: Any, repeats: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.keys = _repeat_with_room(layer.keys, repeats, room)
        self.values = _repeat_with_room(layer.values, repeats, room)
        self.is_initialized = True


class RoomyLayer(_CopiedLayer):
    """One layer's keys and values with room for all tokens to come, so that none is copied twice.

    The usual layer concatenates, which moves the whole cache for every token.
    """

    def __init__(self, layer: Any, repeats: int, room: int) -> None:
        super().__init__(layer, repeats, room)
        self.filled = layer.keys.shape[-2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns and return everything written."""
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns written."""
        return self.filled


class FixedLayer(_CopiedLayer):
    """One layer's keys and values in a fixed number of columns, of which `column` is written next.

    `column` is a tensor [1], shared by all layers and moved on by whoever decodes.
    """

    is_compileable = True

    def __init__(self, layer: Any, repeats: int, width: int, column: Tensor) -> None:
        super().__init__(layer, repeats, width - layer.keys.shape[-2])
        self.column = column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column and return all, written or not."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns written."""
        return int(self.column)

    def widen(self, width: int) -> None:
        """Make room for tokens up to column `width`."""
        room = width - self.keys.shape[-2]
        self.keys = _repeat_with_room(self.keys, 1, room)
        self.values = _repeat_with_room(self.values, 1, room)


def roomy_cache(layers: Sequence[Any], num_generations: int, room: int) -> Cache:
    """Copy each prompt's keys and values to its completions, with room for their tokens."""
    return Cache(layers=[RoomyLayer(layer, num_generations, room) for layer in layers])


def fixed_cache(layers: Sequence[Any], num_generations: int, width: int, column: Tensor) -> Cache:
    """Copy each prompt's keys and values to its completions, `width` columns in all."""
    return Cache(layers=[FixedLayer(layer, num_generations, width, column) for layer in layers])


def _repeat_with_room(states: Tensor, repeats: int, room: int) -> Tensor:
    """Repeat each row and add `room` columns of zeros: a masked column must still be finite."""
    batch, heads, length, width = states.shape
    grown = states.new_empty(batch * repeats, heads, length + room, width)
    grown[:, :, length:] = 0
    grown.unflatten(0, (batch, repeats))[:, :, :, :length] = states[:, None]
    return grown
