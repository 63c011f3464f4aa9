"""The report that a volunteer reads, the lines in the chat, and the loss curve."""

from __future__ import annotations

import re
import struct
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from config.texts import catalogue
from training.curve import curve
from training.evaluation import Evaluation, Reply, RevisionResult, Speed, SuiteResult
from training.gate import Reason, judge
from training.job import Ended
from training.report import CHAT_LIMIT, chat_summary, explain, write_report

RESULT = {
    "stages": {
        "sft": {"steps": 120, "epochs": 3, "loss": {"first": 3.21, "last": 0.4, "best": 0.38}},
        "kto": {"steps": 20, "epochs": 1, "loss": {"first": 0.5, "last": 0.44, "best": 0.43}},
    },
    "seconds": 245.0,
    "tokens_per_second": 381.4,
    "estimate": {"total": 3 * 2**30, "parts": {}},
    "peak_memory": {"mlx": 2 * 2**30, "process": 2**31},
}
COUNTS = {
    "kinds": {"fact": 80, "taught": 36, "replay": 1},
    "liked": 2,
    "disliked": 0,
    "excluded": {"waits": 4},
}
HISTORY = {
    "sft": [
        {"step": 0, "held_out": 3.0},
        *({"step": n, "loss": 3 / n} for n in range(1, 40)),
        {"step": 40, "loss": 0.1, "held_out": 1.2},
    ],
    "kto": [{"step": n, "loss": 0.5 - n / 100} for n in range(1, 10)],
}


def revision(digest, passed, text):
    replies = tuple(
        Reply(
            id=f"lesson:{i}",
            question=f"Quem toca o bombo {i}?",
            text=text,
            passed=i < passed,
            score=float(i < passed),
            chrf=0.5,
            tokens=9,
            seconds=0.3,
        )
        for i in range(12)
    )
    return RevisionResult(
        digest=digest,
        suites={
            "lessons": SuiteResult(version="1", replies=replies),
            "held_out": SuiteResult(version="1", losses={"fact:1": 3.0 - passed / 10}),
        },
        speed=Speed(first_token=0.2, tokens_per_second=50),
    )


def evaluated(before, now, text="É a Dulce, sócia n.º 83."):
    names = {
        "new": revision("n", now, text),
        "old": revision("o", before, "Não sei | *nada*\nmesmo"),
    }
    found = Evaluation(model="m", base="b", persona="p", seconds=61, revisions=names)
    return found, judge(found, candidate="new", champion="old", anchor="old")


@pytest.fixture
def good():
    return evaluated(0, 11)


def test_a_volunteer_reads_what_was_decided_and_why(tmp_path, good):
    evaluation, verdict = good
    report = write_report(tmp_path, verdict, evaluation, RESULT, "pt", counts=COUNTS).read_text()
    assert "✅ A nova revisão passou na prova" in report
    assert "Em «o que os adeptos ensinaram» acerta agora 11 de 12; antes acertava 0." in report
    assert "36 lições ensinadas por adeptos" in report
    assert "1 conversa geral," in report
    assert "2 respostas com 👍" in report
    assert "👎" not in report
    assert "- 4: acima do limite por noite: entra numa das próximas" in report
    assert "| certas: o que os adeptos ensinaram | 92% ▲ | 0% | 0% |" in report
    assert "| perda: exemplos guardados para a prova | 1,90 ▲ | 3,00 | 3,00 |" in report
    assert "| tokens por segundo | 50/s = | 50/s | 50/s |" in report
    assert "Durou 4 min 05 s, a 381 tokens por segundo" in report
    assert "3,00 GiB previstos, 2,00 GiB medidos" in report
    assert "Respostas: 120 passos, perda de 3,21 para 0,40" in report


def test_a_few_answers_before_and_after_with_no_markup_of_theirs(tmp_path, good):
    evaluation, verdict = good
    report = write_report(tmp_path, verdict, evaluation, RESULT).read_text()
    assert report.count("- antes: ") == 5
    assert r"- antes: Não sei \| \*nada\* mesmo" in report
    assert "- agora: É a Dulce, sócia n.º 83." in report


def test_what_got_worse_is_shown_too(tmp_path):
    evaluation, verdict = evaluated(3, 0)
    report = write_report(tmp_path, verdict, evaluation, RESULT).read_text()
    assert "❌ A nova revisão não passou na prova" in report
    assert "Porque não passou:" in report
    assert "▼ **Quem toca o bombo 0?**" in report


def test_the_report_exists_in_english(tmp_path, good):
    evaluation, verdict = good
    report = write_report(tmp_path, verdict, evaluation, RESULT, "en", counts=COUNTS).read_text()
    assert "| | new | in service | reference |" in report
    assert "36 lessons taught by fans" in report
    assert "| 1.90 ▲ | 3.00 | 3.00 |" in report
    assert not re.search(r"\b(não|adeptos|revisão)\b", report.partition("## Before and after")[0])


def test_a_run_without_figures_still_has_a_report(tmp_path, good):
    evaluation, verdict = good
    assert "A prova durou 1 min 01 s" in write_report(tmp_path, verdict, evaluation, {}).read_text()


def test_the_curve_is_in_the_report_once_it_was_drawn(tmp_path, good):
    evaluation, verdict = good
    assert "loss.png" not in write_report(tmp_path, verdict, evaluation, RESULT).read_text()
    curve(tmp_path, HISTORY)
    assert "](loss.png)" in write_report(tmp_path, verdict, evaluation, RESULT).read_text()


def test_the_chat_gets_a_few_lines(good):
    _, verdict = good
    said = chat_summary(verdict, "pt", revision="20261124-abc")
    assert said.startswith("**✅ A nova revisão passou")
    assert "`20261124-abc`" in said
    assert "certas: o que os adeptos ensinaram: 0% → 92% ▲" in said
    assert "lessons" not in said
    assert "GiB" not in said
    said = chat_summary(verdict, "pt", training_result=RESULT)
    assert said.endswith("- Memória: 3,00 GiB previstos, 2,00 GiB medidos")


@pytest.mark.parametrize("language", ["pt", "en"])
def test_many_reasons_fit_into_a_chat(good, language):
    _, verdict = good
    reasons = tuple(
        Reason.of("gate.flip", suite="refusals", n=26, cases="c" * 300) for _ in range(9)
    )
    rejected = verdict.model_copy(update={"promoted": False, "reasons": reasons})
    said = chat_summary(rejected, language)
    assert len(said) <= CHAT_LIMIT
    assert "5" in chat_summary(rejected.model_copy(update={"figures": ()}), language) or "…" in said


@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize(
    "key",
    [key for key in catalogue() if re.fullmatch(r"gate\.[a-z_]+", key)],
)
def test_every_reason_is_a_sentence(key, language):
    values = {"suite": "club", "than": "anchor", "n": 3, "cases": "a, b"}
    values |= {"before": 1, "now": 2, "times": 3}
    said = explain(Reason.of(key, **values), language)
    assert "{" not in said
    assert said.endswith(".")


def test_every_reason_for_an_end_has_its_sentence():
    reasons = Ended.model_fields["reason"].annotation.__args__
    assert all(f"night.reason.{reason}" in catalogue() for reason in reasons if reason)


def test_the_curve_is_a_picture_in_both_formats(tmp_path):
    curve(tmp_path, HISTORY)
    png = (tmp_path / "loss.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG")
    assert width > height > 400
    svg = ET.fromstring((tmp_path / "loss.svg").read_bytes())
    assert svg.tag.endswith("svg")


@pytest.mark.parametrize(("language", "written"), [("pt", "1,20"), ("en", "1.20")])
def test_the_curve_writes_numbers_as_its_language_does(tmp_path, monkeypatch, language, written):
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text as text
    curve(tmp_path, HISTORY, language)
    texts = {
        one.text for one in ET.fromstring((tmp_path / "loss.svg").read_bytes()).iter() if one.text
    }
    assert written in texts
    assert ("0.5" in texts) is (language == "en")
    assert ("0,5" in texts) is (language == "pt")


def test_the_same_history_draws_the_same_bytes(tmp_path):
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        curve(tmp_path / name, HISTORY)
        drawn.append([(tmp_path / name / f"loss.{end}").read_bytes() for end in ("png", "svg")])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "history", [{}, {"sft": [], "kto": []}, {"sft": [{"step": 1, "loss": 2.0}]}]
)
def test_a_short_history_draws_too(tmp_path, history):
    curve(tmp_path, history)
    assert (tmp_path / "loss.png").stat().st_size > 0
