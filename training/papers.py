"""What stands in a revision's folder beside its weights: where they came from and what they are."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bot.prompts import Persona
from config.settings import Settings
from training import curve, evaluation, files, gate, report
from training.guide import integration_guide
from training.page import page
from training.recipe import Recipe
from training.serving import Base


@dataclass(frozen=True, slots=True)
class Facts:
    """What a night knows about a revision."""

    name: str
    base: Base
    settings: Settings
    recipe: Recipe
    parent: str
    created_at: datetime
    verdict: gate.Verdict
    found: evaluation.Evaluation
    manifest: Mapping[str, Any]  # of the dataset


def write(draft: Path, result: Path, facts: Facts) -> dict[str, Any]:
    """Fill a draft from the trainer's result; returns the metadata, which makes it whole."""
    for file in result.iterdir():
        shutil.copyfile(file, draft / file.name)
    trained = json.loads((result / "result.json").read_bytes())
    described = _metadata(facts, trained)
    verdict = facts.verdict
    language = facts.settings.conversation.language
    (draft / "qlora_config.json").write_bytes(files.to_json(_qlora_config(facts.base, draft)))
    (draft / "evaluation.json").write_bytes(facts.found.model_dump_json().encode())
    (draft / "verdict.json").write_bytes(verdict.model_dump_json(indent=1).encode())
    (draft / "INTEGRATION_GUIDE.md").write_text(integration_guide(facts.name, described), "utf-8")
    curve.curve(draft, json.loads((result / "curve.json").read_bytes()), language)
    written = report.write_report(
        draft, verdict, facts.found, trained, language, counts=facts.manifest["counts"]
    )
    written.with_suffix(".html").write_text(page(written, language), "utf-8")
    return described


def _metadata(facts: Facts, trained: Mapping[str, Any]) -> dict[str, Any]:
    base, recipe, verdict, manifest = facts.base, facts.recipe, facts.verdict, facts.manifest
    rows = [*manifest["train"], *manifest["held_out"], *manifest["preferences"]]
    return {
        "created_at": facts.created_at.isoformat(),
        "promoted": verdict.promoted,
        "parent": facts.parent,
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "persona": Persona.load(facts.settings.conversation.persona).version,
        "template": _template(base.folder),
        "dataset": manifest["digest"],
        "rows": sorted(set(rows)),
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "training": dict(trained),
        "figures": [figure.model_dump() for figure in verdict.figures],
        "python": platform.python_version(),
    }


def _qlora_config(base: Base, draft: Path) -> dict[str, Any]:
    config = json.loads((base.folder / "config.json").read_bytes())
    adapter = json.loads((draft / "adapter_config.json").read_bytes())
    wanted = adapter["lora_parameters"]
    return {
        "base_model": base.name,
        "base_fingerprint": base.fingerprint,
        "quantization": config.get("quantization"),
        "adapter": adapter["fine_tune_type"],
        "rank": wanted["rank"],
        "scale": wanted["scale"],
        "lora_alpha": wanted["scale"] * wanted["rank"],
        "target_modules": wanted["keys"],
        "layers": adapter["num_layers"],
    }


def _template(folder: Path) -> str:
    """Names the chat template that prompts were made with."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return ""
