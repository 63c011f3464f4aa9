"""Adapters as a training run could leave them, without a run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from engine import weights
from engine.lora import CONFIG, WEIGHTS
from training.exchange.adapter import Adapter
from training.exchange.importing import shapes
from training.guide import FILE, integration_guide

KEYS = ("mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj")
NOW = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)


def random_adapter(base, *, kind="lora", layers=2, rank=4, scale=2.0, keys=KEYS, size=0.05):
    """For the last blocks of the model in `base`, far from the zero that a run begins with."""
    random = np.random.default_rng(5)
    held, depth = shapes(base), weights.read_config(base)["num_hidden_layers"]
    tensors = {}
    for layer in range(depth - layers, depth):
        for module in (f"model.layers.{layer}.{key}" for key in keys):
            rows, columns = held[f"{module}.weight"]
            tensors[f"{module}.lora_a"] = random.normal(0, columns**-0.5, (columns, rank))
            tensors[f"{module}.lora_b"] = random.normal(0, size, (rank, rows))
            if kind == "dora":
                tensors[f"{module}.m"] = random.uniform(0.8, 1.2, rows)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(keys)}
    config = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}
    return Adapter(config, {name: value.astype(np.float32) for name, value in tensors.items()})


def commit(revisions, adapter, base, name="20261124-033000-1"):
    """Make it a revision, as a night would."""
    fingerprint = weights.fingerprint(weights.read_config(base), weights.check(base))
    config = adapter.config["lora_parameters"]
    metadata = {
        "created_at": NOW.isoformat(),
        "promoted": True,
        "parent": "base",
        "base": {"name": base.name, "fingerprint": fingerprint},
        "dataset": "d" * 64,
        "rows": ["r1", "r2"],
        "recipe": {
            "kind": adapter.config["fine_tune_type"],
            "rank": adapter.rank,
            "scale": config["scale"],
            "layers": adapter.config["num_layers"],
            "targets": config["keys"],
        },
        "seed": 7,
        "training": {"stages": {}},
    }
    draft = revisions.draft(name)
    save_file(dict(adapter.tensors), draft / WEIGHTS, {"format": "mlx"})
    (draft / CONFIG).write_text(json.dumps(adapter.config))
    (draft / FILE).write_text(integration_guide(name, metadata))
    return revisions.commit(name, draft, metadata)


def run_guide(guide, base, folder, *, without=()):
    """Run the commands of a guide with its paths filled in; returns what each printed.

    Of the lines for a shell those of mlx-lm: the other programs are not here.
    """
    guide = guide.replace("PATH/TO/THE/BASE", str(base)).replace("PATH/TO/THIS/FOLDER", str(folder))
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    said = []
    for kind, block in blocks:
        if any(name in block for name in without):
            continue
        command = [sys.executable, "-c", block]
        if kind == "sh":
            if not block.startswith("mlx_lm"):
                continue
            program, *options = shlex.split(block)
            command = [str(Path(sys.executable).with_name(program)), *options]
        assert "PATH/TO" not in block
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return said
