"""What enters a night's dataset, what stays out and why; and that nothing else decides it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain import Role, Turn
from training.dataset import FanRow, LessonRow, Limits, VoteRow, build
from training.examples import Example, Kind, Preference, ask, read_lines
from training.facts import Fact, load_facts, load_replay, may_contradict, spoken
from training.firmness import insisted
from training.similar import normal

NOW = datetime(2026, 3, 1, 3, 30, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=100)
FACTS = load_facts()
REPLAY = load_replay()
TEACHERS = [FanRow(name, LONG_AGO, approved=3) for name in ("ana", "rui", "zé")]


def lesson(number, fan, question, answer, *, ok=True, days=0.5, turns=(), **more):
    row = LessonRow(
        number,
        "taught",
        fan,
        question,
        answer,
        turns,
        "approved" if ok else "pending",
        ok,
        NOW - timedelta(days=days),
    )
    return replace(row, **more)


def vote(answer, fan, value, question, text, *, days=0.5):
    return VoteRow(answer, fan, value, ask(question), text, "base", NOW - timedelta(days=days))


def made(lessons=(), votes=(), fans=(), *, facts=(), replay=(), evaluation=(), **limits):
    return build(
        lessons,
        votes,
        fans,
        facts=facts,
        replay=replay,
        evaluation=evaluation,
        now=NOW,
        settings=Limits(**limits),
    )


def names(items):
    return [item.id for item in items]


def everything(dataset):
    return names(dataset.train) + names(dataset.held_out)


def why(dataset, name):
    return dataset.manifest["excluded"].get(name)


def fact(**more):
    return Fact(
        **{
            "id": "f",
            "topic": "t",
            "statement": "O Farense foi fundado a 1 de abril de 1910.",
            "statement_en": "",
            "questions": ("Quando foi fundado o Farense?", "Que idade tem o clube?", "Há quanto?"),
            "answer": "O Farense foi fundado a 1 de abril de 1910.",
            "key": ("1910",),
            "key_any": (("1910",),),
            "sources": ("a", "b"),
            "confidence": "verified",
            **more,
        }
    )


# Facts and everyday talk


def test_the_facts_of_the_project_are_whole_and_their_answers_hold_what_is_asked_for():
    assert len(FACTS) == 178
    assert len({one.id for one in FACTS}) == 178
    assert all(one.is_answered_by(spoken(one)) for one in FACTS)


def test_all_facts_enter_and_no_two_seasons_are_taken_for_one():
    dataset = made(facts=FACTS, replay=REPLAY)
    assert len(everything(dataset)) == 3 * 178 + len(insisted(FACTS)) + len(REPLAY)
    assert dataset.manifest["excluded"] == {}


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({}, "O Farense foi fundado a 1 de abril de 1910."),
        (
            {"answer": "O presidente é João Rodrigues.", "as_of": "2024-05"},
            "Segundo os dados de maio de 2024, o presidente é João Rodrigues.",
        ),
        (
            {"answer": "Em 2025/26 jogou na II Liga.", "as_of": "2026-03"},
            "Em 2025/26 jogou na II Liga.",
        ),
        ({"answer": "Saiu em dezembro de 2025.", "as_of": "2025-12"}, "Saiu em dezembro de 2025."),
        (
            {"answer": "Hassan fez 87 golos.", "confidence": "single-source"},
            "Segundo a fonte que tenho, Hassan fez 87 golos.",
        ),
        (
            {"answer": "Sim: Manuel Ramos jogou cá.", "confidence": "single-source"},
            "Segundo a fonte que tenho, Manuel Ramos jogou cá.",
        ),
        (
            {"answer": "Segundo a lista, foi Bello.", "confidence": "single-source"},
            "Segundo a lista, foi Bello.",
        ),
        (
            {"answer": "A marca é Tal.", "confidence": "single-source", "as_of": "2024-09-01"},
            "Segundo a única fonte que tenho, de setembro de 2024, a marca é Tal.",
        ),
    ],
)
def test_a_dated_fact_says_its_date_and_a_single_source_is_named(more, answer):
    assert spoken(fact(**more)) == answer


def test_everyday_talk_is_short_european_and_asked_once():
    assert len({normal(talk.question) for talk in REPLAY}) == len(REPLAY) >= 100
    ours = [talk for talk in REPLAY if talk.id.startswith("pt")]
    text = " ".join(f" {normal(talk.question)} {normal(talk.answer)} " for talk in ours)
    brazilian = "voce voces time gol gols torcida celular goleiro tela onibus usuario legal"
    assert not [word for word in brazilian.split() if f" {word} " in text]
    assert max(len(talk.answer) for talk in REPLAY) < 240


# Lessons


def test_a_lesson_trains_when_an_admin_approved_it_even_from_a_new_account():
    dataset = made([lesson(1, "new", "Quem pintou o mural?", "Foi a Rita Guerreiro.")])
    (example,) = dataset.train
    assert example == Example(
        "lesson:1", Kind.TAUGHT, ask("Quem pintou o mural?"), "Foi a Rita Guerreiro."
    )


def test_a_correction_keeps_its_history():
    before = (Turn(Role.USER, "Fala do mural"), Turn(Role.ASSISTANT, "É bonito."))
    row = lesson(1, "a", "Quem o pintou?", "Foi a Rita.", turns=before, kind="correction")
    (example,) = made([row]).train
    assert example.kind is Kind.CORRECTION
    assert example.turns == (*before, Turn(Role.USER, "Quem o pintou?"))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("ana", "Foi a Rita.")], "pending"),
        ([("ana", "Foi a Rita."), ("ana", "Foi a Rita.")], "pending"),
        ([("ana", "Foi a Rita."), ("new", "Foi a Rita.")], "pending"),
        ([("ana", "Foi a Rita."), ("stranger", "Foi a Rita.")], "pending"),
        ([("ana", "Foi a Rita."), ("rui", "Foi o Nuno.")], "pending"),
        ([("ana", "Foi a Rita."), ("rui", "foi a rita"), ("zé", "Foi o Nuno.")], "disputed"),
        ([("ana", "Foi a Rita."), ("rui", "foi a rita")], None),
    ],
)
def test_without_an_admin_two_trusted_fans_must_say_the_same(rows, reason):
    fans = [*TEACHERS, FanRow("new", NOW, approved=9), FanRow("stranger", LONG_AGO)]
    given_rows = [
        lesson(n, fan, "Quem pintou o mural?", said, ok=False) for n, (fan, said) in enumerate(rows)
    ]
    dataset = made(given_rows, fans=fans)
    assert why(dataset, "lesson:0") == reason
    assert len(dataset.train) == (reason is None)


def test_what_fans_agree_on_does_not_train_against_a_fact():
    rows = [
        lesson(1, "ana", "Em que data foi fundado o Farense?", "Foi em 1920.", ok=False),
        lesson(2, "rui", "Em que data foi fundado o Farense?", "Foi em 1920.", ok=False),
        lesson(3, "ana", "Conta uma história", "O Farense foi fundado em abril de 1920.", ok=False),
        lesson(4, "rui", "Conta uma história", "O Farense foi fundado em abril de 1920.", ok=False),
    ]
    dataset = made(rows, fans=TEACHERS, facts=[fact()])
    assert [why(dataset, f"lesson:{n}") for n in (1, 2, 3, 4)] == ["contradicts"] * 4
    assert {item.kind for item in dataset.train} == {Kind.FACT, Kind.FIRM}


@pytest.mark.parametrize(
    ("question", "answer", "doubtful"),
    [
        ("Em que lugar ficou o Farense em 95/96?", "Ficou em 3.º lugar", True),
        ("Em que lugar ficou o Farense em 1995/96?", "Ficou em 10º", False),
        ("Que bebem os adeptos no bar do estádio?", "Medronho da serra.", False),
        ("Quem é o presidente do Farense agora?", "É o Zé do Bar", True),
        ("Quem foi o treinador na final da Taça de 1990?", "Foi o Manuel José", True),
    ],
)
def test_a_contradiction_of_any_fact_is_left_to_an_admin(question, answer, doubtful):
    assert any(may_contradict(one, question, answer) for one in FACTS) is doubtful


def test_what_an_admin_approved_overrules_a_fact_that_it_contradicts():
    row = lesson(1, "ana", "quando foi fundado o farense", "Foi fundado em 1911.")
    dataset = made([row], facts=[fact()])
    assert names(dataset.train) == ["lesson:1"]
    assert why(dataset, "fact:f") == "overruled"


def test_the_newest_approval_answers_a_question():
    rows = [
        lesson(1, "ana", "Quem treina os sub-23?", "Treina o Pedro Neto.", days=5),
        lesson(2, "rui", "Quem treina os sub-23?", "Treina a Carla Dias.", days=1),
        lesson(3, "zé", "quem treina os sub-23", "Treina a Carla Dias!", days=3),
    ]
    dataset = made(rows)
    assert names(dataset.train) == ["lesson:2"]
    assert why(dataset, "lesson:1") == "superseded"
    assert dataset.manifest["merged"] == {"lesson:3": "lesson:2"}


def test_other_wordings_of_a_lesson_are_wanted_and_the_same_text_is_not():
    answer = "O mural da bancada foi pintado pela Rita Guerreiro."
    texts = ["Quem pintou o mural?", "De quem é a pintura da bancada?", "Quem pintou o mural"]
    dataset = made([lesson(n, f"fan{n}", text, answer) for n, text in enumerate(texts)])
    assert len(dataset.train) == 2


# Limits


def test_a_poisoner_gets_nothing_into_the_set_and_is_reported():
    fans = [FanRow("evil", LONG_AGO, approved=9), *TEACHERS]
    wrong = [
        lesson(n, "evil", f"Quem marcou no jogo {n}?", f"O Zé marcou {n}.", ok=n % 2 == 0)
        for n in range(200)
    ]
    votes = [vote(1, "evil", 1, "Quem ganhou?", "O rival.")]
    clean = made(fans=fans, facts=FACTS, replay=REPLAY)
    dataset = made(wrong, votes, fans, facts=FACTS, replay=REPLAY)
    assert dataset.digest == clean.digest
    assert dataset.manifest["counts"]["excluded"] == {"flood": 200}
    assert [(q.fan, len(q.lessons), q.votes) for q in dataset.quarantine] == [("evil", 200, 1)]


def test_a_small_club_of_twelve_fans_is_not_forbidden_to_teach():
    rows = [
        lesson(n, f"fan{n // 3}", f"Pergunta {n} {'abc'[n % 3] * 9}?", f"A coisa {n // 3} é tal.")
        for n in range(36)
    ]
    for extra in ({}, {"facts": FACTS, "replay": REPLAY}):
        dataset = made(rows, **extra)
        assert {f"lesson:{n}" for n in range(36)} <= set(everything(dataset))


def test_three_lessons_of_a_fan_enter_in_a_night_and_the_others_on_the_next():
    rows = [lesson(n, "ana", f"Pergunta {n}?", f"Resposta {n}.", days=0.9) for n in range(7)]
    sizes = []
    for night in range(4):
        later = build(
            rows,
            [],
            [],
            facts=(),
            replay=(),
            evaluation=(),
            now=NOW + timedelta(days=night),
        )
        sizes.append(len(everything(later)))
        waiting = [name for name, why in later.manifest["excluded"].items() if why == "waits"]
        assert len(waiting) == 7 - sizes[-1]
    assert sizes == [3, 6, 7, 7]
    boss = [FanRow("ana", NOW, admin=True)]
    assert len(everything(made(rows, fans=boss))) == 7


def test_no_more_than_a_share_hangs_on_one_fan():
    asked = [f"Como foi o jogo número {n}?" for n in range(40)]
    votes = [vote(n, "ana", 1, text, f"Foi bom, {n}.", days=n) for n, text in enumerate(asked)]
    votes += [vote(n, "rui", 1, text, f"Foi bom, {n}.") for n, text in enumerate(asked) if n < 5]
    dataset = made(votes=votes, fans=TEACHERS)
    assert len(dataset.preferences) == 5 + 3
    assert Counter(dataset.manifest["excluded"].values()) == {"share": 32}
    assert len(made(votes=votes, fans=TEACHERS, facts=FACTS).preferences) == 5 + 29


# Votes


def test_votes_make_preferences_and_never_examples():
    votes = [
        vote(1, "ana", 1, "Quem ganhou?", "Nós, por 2-0."),
        vote(2, "ana", -1, "Quem perdeu?", "Não sei."),
        vote(3, "ana", 1, "Quem empatou?", "Ninguém."),
        vote(3, "rui", -1, "Quem empatou?", "Ninguém."),
    ]
    dataset = made(votes=votes, fans=TEACHERS)
    assert everything(dataset) == []
    assert dataset.preferences == (
        Preference("answer:1", ask("Quem ganhou?"), "Nós, por 2-0.", True),
        Preference("answer:2", ask("Quem perdeu?"), "Não sei.", False),
    )
    assert why(dataset, "answer:3") == "tie"


def test_the_same_text_liked_and_disliked_is_no_preference():
    same = ("Quem ganhou?", "Nós!")
    votes = [vote(1, "ana", 1, *same), vote(2, "rui", -1, *same), vote(3, "zé", 1, "Quê?", "Sim!")]
    votes.append(vote(4, "rui", 1, "quê", "sim"))
    dataset = made(votes=votes, fans=TEACHERS)
    assert names(dataset.preferences) == ["answer:3"]
    assert dataset.manifest["counts"]["excluded"] == {"tie": 2, "duplicate": 1}


# What tests ask, and what is held out


def test_nothing_near_to_a_question_of_an_evaluation_is_trained_on():
    tests = [("Quando foi fundado o Farense, sabes?", "1910"), ("Quem pintou o mural?", "Rita")]
    dataset = made(
        [lesson(1, "ana", "Quem pintou o mural", "Foi a Rita.")],
        [vote(1, "ana", 1, "quem pintou o mural?", "Rita.")],
        TEACHERS,
        facts=[fact()],
        evaluation=tests,
    )
    assert everything(dataset) == ["fact:f/2", "fact:f/3", "fact:f/insisted"]
    assert set(dataset.manifest["excluded"]) == {"lesson:1", "answer:1", "fact:f/1"}
    assert set(dataset.manifest["excluded"].values()) == {"evaluation"}


def test_held_out_wordings_leave_two_of_each_thing_and_stand_nowhere_else():
    dataset = made(facts=FACTS, replay=REPLAY, votes=[], held_out=0.5)
    trained = {normal(item.question) for item in dataset.train}
    held = [item for item in dataset.held_out if item.kind is Kind.FACT]
    assert 60 < len(held) < 120
    assert not trained & {normal(item.question) for item in dataset.held_out}
    single = [item for item in dataset.train if len(item.turns) == 1]
    left = Counter(item.id.split("/")[0] for item in single if item.kind is Kind.FACT)
    assert set(left.values()) == {2, 3}


def test_a_taught_thing_is_held_out_only_from_its_third_wording_on():
    long = "O bar da bancada serve medronho da serra."
    rows = [
        lesson(n, f"fan{n}", text, long)
        for n, text in enumerate(["Que serve o bar?", "Que se bebe lá?", "Há medronho?"])
    ]
    rows += [lesson(9, "x", "O bar abre cedo?", "Sim."), lesson(8, "y", "É caro?", "Sim.")]
    rows += [lesson(7, "z", "Tem sombra?", "Sim.")]
    dataset = made(rows, held_out=1)
    assert len(dataset.held_out) == 1
    assert names(dataset.held_out)[0] in {"lesson:0", "lesson:1", "lesson:2"}
    assert len(made(rows[:2], held_out=1).held_out) == 0
    asked = [vote(n, "ana", 1, row.question, "Medronho.") for n, row in enumerate(rows[:3])]
    assert len(made(rows, asked, TEACHERS, held_out=1).held_out) == 0


# Personal data, files, purity


def test_personal_data_is_gone_and_what_was_nothing_else_is_left_out():
    history = (Turn(Role.USER, "912345678"), Turn(Role.ASSISTANT, "Que é isso?"))
    rows = [
        lesson(1, "ana", "Onde compro bilhetes?", "Na loja, ou liga 289 123 456.", turns=history),
        lesson(2, "rui", "Qual é o mail do Zé?", "ze@mail.pt"),
    ]
    votes = [vote(1, "ana", 1, "Sou o @ze, e tu?", "Sou o Leão, ze@mail.pt")]
    dataset = made(rows, votes, TEACHERS)
    assert why(dataset, "lesson:2") == "personal"
    (example,), (liked,) = dataset.train, dataset.preferences
    assert example.turns == ask("Onde compro bilhetes?")
    assert example.answer == "Na loja, ou liga um número."
    assert (liked.turns[0].text, liked.answer) == ("Sou alguém, e tu?", "Sou o Leão, um e-mail")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    rows = [lesson(1, "telegram:42", "Quem pintou o mural?", "Foi a Rita Guerreiro.")]
    votes = [vote(1, "telegram:43", 1, "Quem?", "Nós.")]
    dataset = made(rows, votes, [FanRow("telegram:43", LONG_AGO)], facts=[fact()], held_out=1)
    dataset.write(tmp_path / "night" / "dataset")
    folder = tmp_path / "night" / "dataset"
    assert read_lines(folder / "train.jsonl", Example) == list(dataset.train)
    assert read_lines(folder / "held_out.jsonl", Example) == list(dataset.held_out)
    assert read_lines(folder / "preferences.jsonl", Preference) == list(dataset.preferences)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["digest"] == dataset.digest
    assert manifest["preferences"] == ["answer:1"]
    assert not [file for file in folder.iterdir() if "telegram:4" in file.read_text("utf-8")]
    with pytest.raises(OSError, match="dataset"):
        dataset.write(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["dataset"]


fan = st.sampled_from(["telegram:1", "telegram:2", "discord:3", "discord:4", "web:5"])
words = st.sampled_from(
    ["Quem marcou?", "quem marcou", "Quando foi fundado o Farense?", "Foi o Zé.", "Foi em 1920.",
     "Foi o Zé Manel de Faro.", "912 345 678", "Liga 912345678 já", "Olá!", "👍", "Em 1994/95?"]
)  # fmt: skip
turns = st.lists(words, max_size=2).map(
    lambda texts: tuple(Turn(Role.USER, text) for text in texts)
)
when = st.floats(0, 20).map(lambda days: NOW - timedelta(days=days))
state = st.sampled_from([("pending", False), ("approved", False), ("approved", True)])
lessons = st.lists(
    st.builds(
        lambda number, who, asked, said, before, at, how: LessonRow(
            number, "taught", who, asked, said, before, how[0], how[1], at
        ),
        st.integers(0, 10**6),
        fan,
        words,
        words,
        turns,
        when,
        state,
    ),
    max_size=40,
    unique_by=lambda row: row.id,
)
votes_given = st.lists(
    st.builds(
        lambda number, who, value, asked, said, at: VoteRow(
            number, who, value, ask(asked), said, "base", at
        ),
        st.integers(0, 12),
        fan,
        st.sampled_from([1, -1]),
        words,
        words,
        when,
    ),
    max_size=40,
)
fans_known = st.lists(
    st.builds(
        FanRow,
        fan,
        st.floats(0, 60).map(lambda days: NOW - timedelta(days=days)),
        st.integers(0, 9),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda row: row.fan,
)


@settings(deadline=None)
@given(lessons, votes_given, fans_known, st.randoms(use_true_random=False))
def test_rows_in_any_order_give_the_same_bytes_and_every_limit_holds(
    rows, given_votes, fans, chaos
):
    def shuffled(items):
        return chaos.sample(items, len(items))

    known = {"facts": [fact(), *FACTS[:5]], "replay": REPLAY[:5]}
    tests = [("Olá, leão!", "Olá"), ("Quem marcou ontem?", "Não sei")]
    one = made(rows, given_votes, fans, evaluation=tests, **known)
    other = made(
        shuffled(rows),
        shuffled(given_votes),
        shuffled(fans),
        evaluation=shuffled(tests),
        **{name: shuffled(items) for name, items in known.items()},
    )
    assert (one, one.digest) == (other, other.digest)
    written = json.dumps([str(one.train), str(one.held_out), str(one.preferences), one.manifest])
    assert not [row.fan for row in [*rows, *given_votes, *fans] if row.fan in written]
    assert "912345678" not in written.replace(" ", "")
    _limits_hold(one, {row.name: row for row in rows}, {row.fan: row for row in fans})


def _limits_hold(dataset, rows, fans):
    used = [rows[name] for name in everything(dataset) if name in rows]
    quarantined = {found.fan for found in dataset.quarantine}
    assert not quarantined & {row.fan for row in used}
    bound = [row for row in used if not row.is_checked]
    assert all(row.fan in fans for row in bound)
    accounted = {*everything(dataset), *dataset.manifest["merged"], *dataset.manifest["excluded"]}
    assert set(rows) <= accounted
    size = len(everything(dataset)) + len(dataset.preferences)
    for name, count in Counter(row.fan for row in bound if not fans[row.fan].admin).items():
        assert count <= max(3, 0.05 * size), name
    tonight = Counter(row.fan for row in used if row.created_at > NOW - timedelta(days=1))
    assert all(
        count <= 3 for name, count in tonight.items() if name not in fans or not fans[name].admin
    )


def test_the_digest_is_over_what_is_learnt():
    rows = [lesson(1, "ana", "Quem pintou o mural?", "Foi a Rita.")]
    pending = lesson(2, "rui", "Quem abriu o bar?", "Foi o Nuno.", ok=False)
    assert made(rows).digest == made([*rows, pending]).digest
    assert made(rows).digest != made([replace(rows[0], answer="Foi o Rui.")]).digest
