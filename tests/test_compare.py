"""Comparing LoRA with QLoRA: what is run, gone on with, left out, and found. Played children."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rich.console import Console

from bot.errors import ConfigError, StoreError
from config.profiles import profiles
from config.settings import load_settings
from config.texts import catalogue, text
from tests.tiny import tiny_model
from training import evaluation, files, suites
from training.compare import bases, contest, data, measure, serve, sides
from training.compare.contest import Contest, Runner, check_disk, finish, place_at, place_in
from training.compare.energy import Card, Rapl
from training.compare.values import FILE, Answer, Comparison, Key
from training.evaluation import Evaluation, Reply, RevisionResult, Speed, SuiteResult
from training.examples import Example, Kind, ask, read_lines, write_lines
from training.job import Ended, Progress, ServeJob, TrainJob, read_job
from training.process import run_job
from training.recipe import Phase, Recipe

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GIB = 2**30


def a_model(folder, *, seed=3):
    """A 16-bit llama's folder, without a tokenizer: it is never asked anything."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir()
    model = tiny_model(words=64, width=64, inner=128, seed=seed)
    model.set_dtype(mx.bfloat16)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return a_model(tmp_path_factory.mktemp("models") / "half")


@pytest.fixture(scope="module")
def both(half):
    return bases.prepare_bases("half", half, half.parent / "made", dequantise=False)


def texts(count, kind=Kind.FACT):
    return tuple(
        Example(f"fact:{n}", kind, ask(f"Pergunta {n}?"), f"Resposta {n}.") for n in range(count)
    )


DATA = data.Data(texts(20), texts(4))


def a_contest(both, **more):
    values = {
        "model": "half", "profile": "cpu", "bases": both, "data": DATA, "persona": "farense",
        "context": 4096, "quick": False, "repetitions": 2,
        "sides": sides.entries(sides.of_original(), quick=False),
    }  # fmt: skip
    return Contest(**(values | more))


class Watch:
    """Notes what it is shown."""

    def __init__(self):
        self.begun, self.heard = [], []

    def begin(self, step, number, total):
        self.begun.append((step.name, number, total))

    def hear(self, event):
        self.heard.append(event)


class Children:
    """Plays the processes: `ends` says how some end, `dies` after how many we are killed."""

    def __init__(self, ends=None, dies=None):
        self.ends, self.dies = ends or {}, dies
        self.done = []
        self.jobs = {}

    def __call__(self, folder, on_event):
        if len(self.done) == self.dies:
            raise KeyboardInterrupt
        job = self.jobs[folder.name] = read_job(folder)
        on_event(Progress(stage="load", step=0, steps=1))
        on_event(Progress(stage="load", step=1, steps=1))
        self.done.append(folder.name)
        if folder.name in self.ends:
            return self.ends[folder.name]
        getattr(self, job.task)(folder, job, on_event)
        return Ended(ok=True)

    def train(self, folder, job, on_event):
        for step, seconds in enumerate([3.0, 2.0, 1.0, 1.0], start=1):
            rate = 100 / seconds
            on_event(
                Progress(stage="sft", step=step, steps=4, seconds=seconds, tokens_per_second=rate)
            )
        result = folder / "result"
        result.mkdir()
        (result / "adapters.safetensors").write_bytes(b"x" * 1000)
        (result / "adapter_config.json").write_bytes(b"{}")
        figures = {"steps": 4, "tokens": 400, "peak_memory": {"mlx": 7e9, "process": 8e9}}
        (result / "result.json").write_bytes(files.to_json(figures))

    def serve(self, folder, job, on_event):
        said = "A base é de 16 bits." if job.folder.name == "half" else "A base é int4."
        number = len([name for name in self.done if "serve" in name])
        figures = {Key.SERVE_LOAD: 2.0, Key.SERVE_RATE_1: 20.0 + number}
        if job.held_out:
            figures[Key.LOSS_BEFORE] = float(len(read_lines(job.held_out, Example)))
        answers = tuple(
            Answer(question=one, text=said if n else "igual") for n, one in enumerate(job.questions)
        )
        found = serve.Served(memory="float32", figures=figures, answers=answers)
        files.write(folder / serve.FILE, found.model_dump_json().encode())

    def evaluate(self, folder, job, on_event):
        replies = tuple(
            Reply(id=str(n), question="?", text="", passed=n > 0, score=1, tokens=1, seconds=1)
            for n in range(3)
        )
        suites = {"club": SuiteResult(version="1", replies=replies)}
        speed = Speed(first_token=1, tokens_per_second=1)
        found = {
            name: RevisionResult(digest="d", suites=suites, speed=speed) for name in job.revisions
        }
        evaluation.write(
            folder, Evaluation(model="m", base="b", persona="p", seconds=1, revisions=found)
        )


def run(made, folder, children):
    found = Runner(made, folder, Watch(), children).run()
    finish(folder, found)
    return found


# What is run


def test_alike_settings_are_run_once_and_serve_both_modes():
    small = sides.entries(sides.of_profile(profiles()["cpu"], 135_000_000), quick=False)
    assert [run.name for run in sides.runs(small).values()] == [
        *("lora-recommended", "qlora-recommended", "lora-recommended", "qlora-recommended")
    ]
    original = sides.entries(sides.of_original(), quick=False)
    assert [run.name for run in sides.runs(original).values()] == [
        *("lora-recommended", "qlora-recommended", "lora-same", "qlora-recommended")
    ]
    assert [side.setting.name for side in original] == [
        *("lora-m1-pro", "qlora-m1-pro", "qlora-m1-pro", "qlora-m1-pro")
    ]


def test_no_side_is_always_the_first():
    original = sides.entries(sides.of_original(), quick=False)
    order = [step for step in sides.steps(original, 3) if step.task != "evaluate"]
    trained = [(step.repetition, step.run.name) for step in order if step.task == "train"]
    there = ["lora-recommended", "qlora-recommended", "lora-same"]
    assert trained == [
        *((1, name) for name in there),
        *((2, name) for name in reversed(there)),
        *((3, name) for name in there),
    ]
    assert [step.task for step in order[:4]] == ["train", "serve", "train", "serve"]


def test_both_learn_the_same_texts_equally_often_in_the_same_order():
    small = Phase(epochs=9, learning_rate=1, batch=1)
    large = Phase(epochs=3, learning_rate=1, warmup=100)
    recipes = {
        "lora": sides.Setting("a", Recipe(rank=4, seed=1, sft=small)),
        "qlora": sides.Setting("b", Recipe(seed=2, sft=large)),
    }
    made = {side.name: side.setting.recipe for side in sides.entries(recipes, quick=False)}
    assert {recipe.sft.epochs for recipe in made.values()} == {3}
    assert {recipe.seed for recipe in made.values()} == {2}
    assert {recipe.rehearsal for recipe in made.values()} == {None}
    assert made["lora-recommended"].rank == 4
    assert made["lora-recommended"].sft.batch == 1
    assert made["lora-same"] == made["qlora-same"] == made["qlora-recommended"]
    quick = {side.name: side.setting.recipe for side in sides.entries(recipes, quick=True)}
    assert {recipe.sft.epochs for recipe in quick.values()} == {2}
    assert quick["qlora-same"].sft.warmup == 5


# What comes of it


def test_everything_that_is_measured_is_in_the_result(both, tmp_path):
    made, children = a_contest(both), Children()
    found = run(made, tmp_path / "c", children)
    written = (tmp_path / "c" / FILE).read_bytes()
    assert Comparison.model_validate_json(written) == found
    assert [side.name for side in found.sides] == [
        *("lora-recommended", "qlora-recommended", "lora-same", "qlora-same")
    ]
    lora, qlora = found.side("lora"), found.side("qlora")
    assert lora.figures[Key.TRAIN_EPOCH].values == (100 * 4 / 3 / 100,) * 2
    assert len(lora.figures[Key.SERVE_RATE_1].values) == 2
    assert lora.figures[Key.LOSS_BEFORE].values == (4.0,)
    assert lora.figures[Key.ADAPTER_BYTES].values == (1002.0,)
    assert lora.median(Key.BASE_BYTES) > 2 * qlora.median(Key.BASE_BYTES)
    assert (lora.base.made, qlora.base.made) == ("given", "quantised")
    assert lora.base.bits == pytest.approx(16, abs=1)
    assert lora.suites == {"club": (2, 3)}
    assert (lora.steps, lora.tokens) == (4, 400)
    assert found.side("qlora", "same").figures == qlora.figures
    assert [(one.mode, one.asked, one.same) for one in found.agreements] == [
        ("recommended", 24, 1),
        ("same", 24, 1),
    ]
    assert 0 < found.agreements[0].chrf < 100


def test_training_holds_nothing_out_and_what_does_not_vary_is_asked_once(both, tmp_path):
    children = Children()
    run(a_contest(both), tmp_path / "c", children)
    job = children.jobs["lora-same-train-1"]
    assert isinstance(job, TrainJob)
    assert job.folder == both["lora"].folder
    dataset = tmp_path / "c" / "lora-same-train-1" / "dataset"
    assert read_lines(dataset / "train.jsonl", Example) == list(DATA.train)
    assert (dataset / "held_out.jsonl").read_bytes() == b""
    first, second = (children.jobs[f"qlora-recommended-serve-{n}"] for n in (1, 2))
    assert isinstance(first, ServeJob)
    assert len(first.questions) == 24
    assert not second.questions
    assert second.held_out is None
    assert second.adapter == tmp_path / "c" / "qlora-recommended-train-2" / "result"


def test_steady_state_first_steps_and_load_are_told_apart():
    heard = [(at, Progress(stage="load", step=at // 10, steps=1)) for at in (0, 10)]
    for at, (seconds, tokens) in enumerate([(5.0, 100), (2.0, 50), (1.0, 100), (3.0, 300)], 1):
        rate = tokens / seconds
        step = Progress(stage="sft", step=at, steps=4, seconds=seconds, tokens_per_second=rate)
        heard.append((20 + at, step))
    result = {"steps": 4, "tokens": 550, "peak_memory": {"mlx": 1, "process": 2}}
    recipe = Recipe(sft=Phase(epochs=2, learning_rate=1))
    found = measure.trained(heard, result, recipe, 12.0).figures
    assert found[Key.TRAIN_LOAD] == 10
    assert found[Key.TRAIN_RATE] == 100  # of the last two steps
    assert found[Key.TRAIN_WARMUP] == 7 - 1.5
    assert found[Key.TRAIN_EPOCH] == 2.75
    assert found[Key.TRAIN_ENERGY] == 12
    few = measure.trained(heard[:4], result, recipe, None).figures
    assert Key.TRAIN_RATE not in few  # no steady state was seen
    assert Key.TRAIN_ENERGY not in few


def test_a_quick_one_asks_little(both, tmp_path):
    quick = a_contest(
        both, quick=True, repetitions=1, sides=sides.entries(sides.of_original(), quick=True)
    )
    children = Children()
    found = run(quick, tmp_path / "c", children)
    assert found.quick
    assert children.jobs["lora-same-evaluate-1"].limit == 3
    assert len(children.jobs["lora-same-serve-1"].questions) == 8


# Interrupted and gone on with


@pytest.mark.parametrize("dies", [0, 3, 7, 14])
def test_interrupted_anywhere_nothing_is_done_twice(both, tmp_path, dies):
    made = a_contest(both)
    before = Children(dies=dies)
    place, begun = place_in(tmp_path, made, NOW)
    assert not begun
    with pytest.raises(KeyboardInterrupt):
        run(made, place, before)
    assert not (place / FILE).exists()
    again = a_contest(both)
    assert place_in(tmp_path, again, datetime(2026, 12, 1, tzinfo=UTC)) == (place, True)
    after = Children()
    found = run(again, place, after)
    everything = [step.name for step in sides.steps(made.sides, 2)]
    assert before.done + after.done == everything
    assert len(found.side("lora").figures[Key.TRAIN_RATE].values) == 2
    assert place_in(tmp_path, again, NOW)[1] is False  # it is whole: the next one is another


def test_a_training_whose_figures_were_lost_is_made_again(both, tmp_path):
    made, children = a_contest(both), Children()
    result = tmp_path / "c" / "lora-recommended-train-1" / "result"
    result.mkdir(parents=True)
    (result / "result.json").write_text("{}")
    found = run(made, tmp_path / "c", children)
    assert found.side("lora").tokens == 400


def test_other_settings_are_another_comparison(both, tmp_path, half):
    made = a_contest(both)
    others = [
        a_contest(both, data=DATA.part(18, 4)),
        a_contest(both, quick=True),
        a_contest(both, sides=sides.entries(sides.of_profile(profiles()["cpu"], 1), quick=False)),
        a_contest({**both, "lora": both["qlora"]}),
    ]
    assert len({one.id for one in [made, *others]}) == 5
    assert a_contest(both).id == made.id


def test_an_interrupted_one_may_end_with_fewer_repetitions(both, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(a_contest(both, repetitions=3), tmp_path / "c", Children(dies=7))
    fewer, children = a_contest(both, repetitions=1), Children()
    assert place_at(tmp_path / "c", fewer) == (tmp_path / "c", True)
    found = run(fewer, tmp_path / "c", children)
    assert len(found.side("lora").figures[Key.TRAIN_RATE].values) == found.repetitions == 1
    assert not [name for name in children.done if "-train-" in name]


def test_a_chosen_folder_is_empty_or_holds_the_same_comparison(both, tmp_path):
    made, folder = a_contest(both), tmp_path / "c"
    assert place_at(folder, made) == (folder, False)
    with pytest.raises(KeyboardInterrupt):
        run(made, folder, Children(dies=1))
    assert place_at(folder, made) == (folder, True)
    with pytest.raises(ConfigError, match="compare_folder"):
        place_at(folder, a_contest(both, quick=True))
    run(made, folder, Children())
    with pytest.raises(ConfigError, match="compare_folder"):
        place_at(folder, made)


# Left out


def test_what_does_not_fit_is_left_out_with_the_numbers_and_the_rest_goes_on(
    both, tmp_path, monkeypatch
):
    def forecast(job, place):
        big = job.folder == both["lora"].folder
        return SimpleNamespace(total=30 * GIB if big else GIB)

    monkeypatch.setattr(contest, "forecast", forecast)
    monkeypatch.setattr(contest, "usable_memory", lambda *_: 12 * GIB)
    children = Children()
    found = run(a_contest(both), tmp_path / "c", children)
    for mode in ("recommended", "same"):
        side = found.side("lora", mode)
        assert side.left_out == "compare.left_out.room"
        assert side.left_out_values == {"needed": 30.0, "free": 12.0}
        assert not side.figures
        assert "30,0" in text(side.left_out, "pt", **side.left_out_values)
        assert side.base.memory in {"float32", "bfloat16"}
    assert found.side("qlora").figures
    assert not found.agreements
    assert not [name for name in children.done if name.startswith("lora")]


@pytest.mark.parametrize("task", ["train", "serve", "evaluate"])
def test_a_process_that_fails_leaves_its_side_out(both, tmp_path, task):
    ended = Ended(ok=False, reason="memory", detail="killed by the system")
    children = Children({f"lora-same-{task}-1": ended})
    found = run(a_contest(both), tmp_path / "c", children)
    out = found.side("lora", "same")
    assert out.left_out == "compare.left_out.memory"
    assert "killed" in text(out.left_out, "en", **out.left_out_values)
    assert found.side("lora").figures
    assert found.side("qlora", "same").figures
    assert [one.mode for one in found.agreements] == ["recommended"]
    assert not [name for name in children.done if "lora-same-train-2" in name and task == "train"]


def test_every_way_to_fail_has_a_sentence():
    reasons = Ended.model_fields["reason"].annotation.__args__
    for reason in reasons:
        assert f"compare.left_out.{reason or 'fault'}" in catalogue()


# Bases and data


def test_the_other_base_is_made_once_and_named_after_its_source(half, tmp_path):
    first = bases.prepare_bases("m", half, tmp_path, dequantise=False)
    made = first["qlora"]
    assert (first["lora"].made, made.made) == ("given", "quantised")
    assert made.folder.parent == tmp_path
    before = made.folder.stat().st_mtime_ns
    again = bases.prepare_bases("m", half, tmp_path, dequantise=False)
    assert again["qlora"] == made
    assert made.folder.stat().st_mtime_ns == before
    twin = shutil.copytree(half, tmp_path / "other" / "half")
    shutil.copy(a_model(tmp_path / "x", seed=5) / "model.safetensors", twin)
    assert bases.prepare_bases("m", twin, tmp_path, dequantise=False)["qlora"] != made


def test_of_int4_alone_a_16_bit_base_is_made_only_on_request(both, tmp_path):
    int4 = both["qlora"].folder
    with pytest.raises(ConfigError, match="compare_no_16bit"):
        bases.prepare_bases("m", int4, tmp_path, dequantise=False)
    name = "mlx-community/Mistral-7B-Instruct-v0.3-4bit"
    with pytest.raises(ConfigError) as told:
        bases.prepare_bases(name, int4, tmp_path, dequantise=False)
    assert "mistralai/Mistral-7B-Instruct-v0.3" in text(told.value.key, "pt", **told.value.values)
    assert not list(tmp_path.iterdir())
    made = bases.prepare_bases("m", int4, tmp_path, dequantise=True)
    assert made["lora"].made == "dequantised"
    assert made["qlora"].made == "given"
    described = made["lora"].described("float32")
    assert (described.memory, described.made) == ("float32", "dequantised")
    assert described.bits > 2 * made["qlora"].described().bits


def test_too_little_disk_is_told_before_anything_is_written(both, tmp_path, monkeypatch):
    disk = SimpleNamespace(free=GIB // 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(ConfigError, match="compare_disk"):
        check_disk(a_contest(both), tmp_path / "not" / "there")
    assert not list(tmp_path.iterdir())
    disk.free = GIB
    check_disk(a_contest(both), tmp_path / "not" / "there")


def test_the_clubs_facts_are_what_a_night_without_fans_trains_on():
    club = data.club()
    assert {example.kind for example in club.train} == {
        *(Kind.FACT, Kind.FIRM, Kind.REPLAY, Kind.GUARD)
    }
    assert club.digest == data.club().digest
    quick = club.part(data.QUICK, data.QUICK_HELD_OUT)
    assert (len(quick.train), len(quick.held_out)) == (24, 12)
    assert len({example.kind for example in quick.train}) > 2  # from all over the set
    assert club.part(9999, 9999) == club


@pytest.mark.parametrize(
    ("train", "held_out", "key"),
    [(20, 4, None), (15, 4, "error.compare_data_small"), (20, 3, "error.compare_data_small")],
)
def test_a_dataset_of_ones_own_must_be_large_enough(tmp_path, train, held_out, key):
    write_lines(tmp_path / "train.jsonl", texts(train))
    write_lines(tmp_path / "held_out.jsonl", texts(held_out))
    if key is None:
        assert len(data.own(tmp_path).train) == train
        return
    with pytest.raises(ConfigError) as told:
        data.own(tmp_path)
    assert told.value.key == key
    assert str(tmp_path) in text(key, "pt", **told.value.values)


def test_a_dataset_that_cannot_be_read_is_told_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match="compare_data"):
        data.own(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "other form"}\n')
    with pytest.raises(ConfigError) as told:
        data.own(tmp_path)
    assert "\n" not in text(told.value.key, "en", **told.value.values)


@pytest.mark.model
def test_only_what_all_sides_read_whole_is_taken(embedded_model):
    long = Example("long", Kind.FACT, ask("E então? " * 40), "Sim.")
    given = data.Data((*DATA.train, long), DATA.held_out)

    def fitting(*lengths):
        return data.fitting(given, embedded_model, persona="farense", context=4096, lengths=lengths)

    assert fitting(256, 256) == given  # the same for all: whoever trains says what was dropped
    assert fitting(256, 2048) == DATA
    with pytest.raises(ConfigError, match="compare_data_long"):
        fitting(32, 2048)


def test_a_part_of_a_suite_is_another_suite():
    whole = suites.load()[0]
    part = suites.part(whole, 3)
    assert len(part.cases) == 3
    assert part.version != whole.version
    assert suites.part(whole, 1000) == whole


# Energy


def a_zone(powercap, name, count, full=1000):
    zone = powercap / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(str(count))
    (zone / "max_energy_range_uj").write_text(str(full))


def test_packages_count_their_energy_also_when_a_counter_runs_over(tmp_path):
    a_zone(tmp_path, "intel-rapl:0", 100)
    a_zone(tmp_path, "intel-rapl:1", 990)
    a_zone(tmp_path, "intel-rapl:0:0", 5)  # a part of the first
    meter = Rapl(tmp_path)
    a_zone(tmp_path, "intel-rapl:0", 300)
    a_zone(tmp_path, "intel-rapl:1", 9)
    a_zone(tmp_path, "intel-rapl:0:0", 500)
    assert meter.end() == pytest.approx((200 + 20) * 1e-6)
    assert Rapl(tmp_path / "none").end() is None


def test_a_counter_that_may_not_be_read_is_none(tmp_path):
    a_zone(tmp_path, "intel-rapl:0", "no number")
    assert Rapl(tmp_path).end() is None


def test_a_cards_power_is_added_up(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '[N/A]'\necho 100.5\necho 99\n")
    program.chmod(0o755)
    card = Card(str(program))
    card._thread.join()
    assert card.end() > 0
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    silent = Card(str(program))
    silent._thread.join()
    assert silent.end() is None
    assert Card("no-such-program").end() is None


# The child


async def test_a_base_that_is_not_there_ends_the_child_with_a_reason(tmp_path):
    job = ServeJob(
        model="m", folder=tmp_path / "none", adapter=None, persona="farense", probes=("Olá?",)
    )
    folder = tmp_path / "job"
    files.write(folder / "job.json", job.model_dump_json().encode())
    ended = await run_job(folder, lambda _: None, lambda: False)
    assert (ended.ok, ended.reason) == (False, "model")
    assert not (folder / serve.FILE).exists()


# The command


@pytest.fixture
def command(tmp_path, half, monkeypatch):
    """`compare` on a tiny model, with played children; gives code and what was printed."""
    from farense_bot import comparing

    def compare(children, **more):
        monkeypatch.setattr(comparing, "Runner", lambda *given: Runner(*given, children))
        monkeypatch.setattr(comparing, "fitting", lambda texts, *_, **__: texts)  # no tokenizer
        settings = load_settings(tmp_path / "home", engine={"model": str(half)})
        console = Console(width=200, record=True)
        values = {
            "quick": True, "dequantise": False, "original": True, "data": None, "out": None,
            "repetitions": None,
        }  # fmt: skip
        code = comparing.compare_now(settings, **(values | more), console=console)
        return code, console.export_text()

    return compare


def test_the_command_says_how_to_go_on_and_does(command, tmp_path):
    before, after = Children(dies=4), Children()
    code, said = command(before)
    assert code == 130
    assert text("compare.stopped") in said
    code, said = command(after)
    assert code == 0
    assert "ficou a meio" in said
    assert len(before.done + after.done) == 9
    folder = next((tmp_path / "home" / "comparisons").iterdir())
    assert str(folder) in said
    assert Comparison.model_validate_json((folder / FILE).read_bytes()).quick


def test_a_report_that_could_not_be_written_is_written_the_next_time(command, monkeypatch):
    from farense_bot.comparing import report

    def full(*_):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", full)
        with pytest.raises(StoreError, match="no space"):
            command(Children())
    code, _ = command(Children(dies=0))  # there is nothing left to measure
    assert code == 0


def test_the_command_takes_less_data_and_another_folder(command, tmp_path):
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    write_lines(own / "train.jsonl", texts(30))
    write_lines(own / "held_out.jsonl", texts(5))
    code, _ = command(Children(), data=own, out=out, rows=18, repetitions=2, original=False)
    assert code == 0
    found = Comparison.model_validate_json((out / FILE).read_bytes())
    assert (found.rows, found.held_out, found.repetitions) == (18, 5, 2)
    assert found.side("lora").settings == "small"
