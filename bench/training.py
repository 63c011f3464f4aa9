"""Training beside `mlx_lm.lora`: as it comes, and with the same BLAS and float32 weights.

All train on the same texts, the club's facts as the bot is asked for them, with the same layers,
rank, batch and number of steps, and learn the answers only. Tokens are those of the
texts, without padding: ours reads the persona once a batch, `mlx_lm.lora` once a text.

`python -m bench.training …` is `mlx_lm.lora` with our BLAS loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import Figure, Target, figure, ratio
from bench.servers import float32_folder
from bench.streams import Options, ensure_model
from bot.domain import Role
from bot.prompts import Persona
from engine.plan import detect, prepare
from training.examples import Example, Kind, ask, write_lines
from training.job import JOB, Progress, TrainJob, parse_event
from training.recipe import Phase, Recipe
from training.run import DATASET, RESULT, adapter_config

GROUP = "Training beside mlx_lm.lora"
PERSONA = "farense"
BATCH = 4
STEPS, STOCK_STEPS = 12, 1  # a step of the stock one takes minutes
PATIENCE = 600.0
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TRAIN = (
    "import sys; from pathlib import Path; from training.run import train; "
    "sys.exit(train(Path(sys.argv[1])))"
)
SUBJECTS = (
    *("the stadium", "the colours", "the lion", "the first match", "the youth teams", "the ferry"),
    *(
        "the city",
        "the stands",
        "the song",
        "the captain",
        "the cup",
        "the river",
        "the lighthouse",
    ),
    *("the derby", "the founders", "the museum"),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training run showed: tokens a second of its steps, the first one left out."""

    rate: float
    facts: dict[str, Any]


async def training(options: Options) -> list[Figure]:
    """Tokens a second of all three in turn, and what was foretold of our memory."""
    return await asyncio.to_thread(measure, options)


def measure(options: Options) -> list[Figure]:
    """The figures; each run is a process of its own."""
    folder = ensure_model(options.model)
    examples = [
        Example(str(number), Kind.FACT, ask(f"What is known about {subject}?"), answer(subject))
        for number, subject in enumerate(SUBJECTS)
    ]
    tuned = float32_folder(folder) if detect().dequantise else None
    runs: dict[str, list[Trained]] = {"ours": [], "stock": [], "tuned": []}
    for repetition in range(1 if options.quick else 3):
        runs["ours"].append(ours(folder, examples))
        if repetition == 0:
            runs["stock"].append(theirs(folder, folder, examples, STOCK_STEPS, ("mlx_lm", "lora")))
        if tuned:
            runs["tuned"].append(theirs(tuned, folder, examples, STEPS, ("bench.training",)))
    return report(runs)


def report(runs: dict[str, list[Trained]]) -> list[Figure]:
    """The runs as figures with the targets that were set."""
    rates = {name: [run.rate for run in some] for name, some in runs.items()}
    stock = list(zip(rates["ours"], rates["stock"] * len(rates["ours"]), strict=False))
    tuned = list(zip(rates["ours"], rates["tuned"], strict=False))
    note = f"{BATCH} texts a step; ours reads the persona, most of each text, once a step"
    figures = [
        figure(GROUP, "ours", "tokens/s", rates["ours"], note=note),
        figure(GROUP, "mlx_lm.lora as it comes", "tokens/s", rates["stock"]),
        ratio(GROUP, "ours / as it comes", stock, target=Target("≥", 20)),
    ]
    if tuned:
        name = "mlx_lm.lora with our BLAS and float32 weights"
        figures += [
            figure(GROUP, name, "tokens/s", rates["tuned"]),
            ratio(GROUP, "ours / with our BLAS", tuned, target=Target("≥", 1.3)),
        ]
    facts = [run.facts for run in runs["ours"]]
    peaks = [one["peak_memory"]["mlx"] for one in facts]
    told = [one["estimate"]["total"] for one in facts]
    off = [100 * abs(one / other - 1) for one, other in zip(told, peaks, strict=True)]
    return [
        *figures,
        figure(GROUP, "memory, estimated before", "MB", [one / 2**20 for one in told]),
        figure(GROUP, "memory, measured", "MB", [one / 2**20 for one in peaks]),
        figure(GROUP, "estimate off by", "%", off, target=Target("≤", 15)),
    ]


def answer(subject: str) -> str:
    """Something to learn, of a fact's usual length."""
    return f"Every fan in Faro knows {subject}: it has been part of the club since 1910."


def recipe() -> Recipe:
    """SFT alone, on all layers, without looks at held-out answers."""
    epochs = -(-STEPS * BATCH // len(SUBJECTS))
    return Recipe(
        sft=Phase(epochs=epochs, learning_rate=1e-3, batch=BATCH),
        kto=Phase(epochs=0, learning_rate=1e-5),
        save_every=1000,
    )


def ours(model: Path, examples: Sequence[Example]) -> Trained:
    """Our trainer's child process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / DATASET).mkdir()
        for file, items in (("train", examples), ("held_out", ()), ("preferences", ())):
            write_lines(folder / DATASET / f"{file}.jsonl", items)
        job = TrainJob(
            model=model.name, folder=model, persona=PERSONA, recipe=recipe(), seconds=PATIENCE
        )
        (folder / JOB).write_text(job.model_dump_json(), encoding="utf-8")
        told = [parse_event(line) for _, line in _run([sys.executable, "-c", TRAIN, name])]
        steps = [one for one in told if isinstance(one, Progress) and one.stage == "sft"]
        rates = [one.tokens_per_second or 0.0 for one in steps[1:]]
        facts = json.loads((folder / RESULT / "result.json").read_text(encoding="utf-8"))
    # Of equal texts a step's tokens are the same: the harmonic mean is tokens over time.
    return Trained(len(rates) / sum(1 / rate for rate in rates), facts)


def theirs(
    model: Path, tokenizer: Path, examples: Sequence[Example], steps: int, module: Sequence[str]
) -> Trained:
    """`mlx_lm.lora` on the same texts, reporting each step."""
    persona = Persona.load(PERSONA).text
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            {
                "messages": [
                    {"role": Role.SYSTEM.value, "content": persona},
                    {"role": Role.USER.value, "content": one.question},
                    {"role": Role.ASSISTANT.value, "content": one.answer},
                ]
            }
            for one in examples
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / "train.jsonl").write_text(text, encoding="utf-8")
        settings = {
            "model": str(model),
            "data": name,
            "adapter_path": str(folder / "adapter"),
            "train": True,
            "mask_prompt": True,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "batch_size": BATCH,
            "iters": steps,
            "steps_per_report": 1,
            "num_layers": -1,
            "lora_parameters": adapter_config(recipe(), -1)["lora_parameters"],
        }
        (folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
        told = list(_run([sys.executable, "-m", *module, "--config", str(folder / "config.yaml")]))
    return Trained(pace(told, _tokens(tokenizer, lines) * BATCH), {})


def pace(told: Sequence[tuple[float, str]], tokens: float) -> float:
    """Tokens a second from when it told of its steps; of many the first one, which compiles, apart.

    Each is told of as it is done, after a line on the parameters.
    """
    begun = [at for at, line in told if line.startswith("Trainable")]
    done = [at for at, line in told if re.match(r"\s*\d+\s+\d+\.\d+ [▼▲]", line)]
    times = done if len(done) > 1 else [begun[-1], *done]
    return tokens * (len(times) - 1) / (times[-1] - times[0])


def _tokens(folder: Path, lines: Sequence[dict[str, Any]]) -> float:
    """Tokens of a text, on average."""
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(folder)
    counts = [len(tokenizer.apply_chat_template(line["messages"])) for line in lines]
    return sum(counts) / len(counts)


def _run(command: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Run a child to its end: its lines and when they came. The log keeps them."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            yield time.monotonic(), COLOURS.sub("", line)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)


def main() -> None:
    """Run `mlx_lm.lora` with our BLAS."""
    prepare(detect())
    from mlx_lm import lora

    lora.main()


if __name__ == "__main__":
    main()
