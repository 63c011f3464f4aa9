"""LoRA and DoRA on a model, in mlx-lm's own layers, names and files.

A revision in service is `with_adapter`: a second view of the same base that adds its weights and
copies none of the base's. Reading its files needs no MLX: any thread may do it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from engine.models import LoadedModel

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


def attach(model: Any, config: Mapping[str, Any]) -> None:
    """Put new layers on a model as `adapter_config.json` says, and leave only them trainable.

    Their first values come from MLX's random state.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model.freeze()
    dora = config["fine_tune_type"] == "dora"
    linear_to_lora_layers(model, config["num_layers"], config["lora_parameters"], use_dora=dora)


def random_state() -> int:
    """What MLX's random numbers come from next; `mx.random.seed` takes it back."""
    import mlx.core as mx

    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high) << 32 | int(low)


def weights_of(model: Any) -> dict[str, Any]:
    """The trainable weights by name."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def with_adapter(loaded: LoadedModel, config: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
    """The base with an adapter on it, ready to serve; the base itself stays as it is.

    `weights` are numpy or MLX arrays. To be called in the thread that owns the model. Raises
    ValueError where names or shapes are not those that the config asks for.
    """
    import mlx.core as mx

    model = copy.deepcopy(loaded.model)
    before = random_state()  # what follows draws numbers that nobody will see
    attach(model, config)
    mx.random.seed(before)
    given = {name: mx.array(value) for name, value in weights.items()}
    _check({name: value.shape for name, value in weights_of(model).items()}, given)
    mx.eval(given)
    model.load_weights(list(given.items()), strict=False)
    model.freeze()
    model.eval()
    return model


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """An adapter's config and weights, without MLX. Raises OSError or ValueError."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config, load_file(folder / WEIGHTS)


def _check(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> None:
    if odd := wanted.keys() ^ given.keys():
        raise ValueError(f"tensors missing or too many: {', '.join(sorted(odd)[:3])}")
    for name, shape in wanted.items():
        if tuple(given[name].shape) != tuple(shape):
            raise ValueError(f"{name} is {tuple(given[name].shape)}, not {tuple(shape)}")
