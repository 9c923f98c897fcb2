"""ROUGE and BLEU in scripts that are not Latin, and words as `rouge_score` has them in ASCII."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from peftlab.tasks.language.text_metrics import ROUGE, TextMetrics
from peftlab.tasks.language.words import Words, bleu_tokenizer_for, words_of

# A right answer, one that differs in a word or a sign, and one of other words.
SCRIPTS = {
    "Arabic": ("القطة تجلس على السجادة في البيت", "القطة تجلس على الكرسي في البيت", "صباح الخير"),
    "Arabic, pointed": ("كَتَبَ الوَلَدُ دَرسَهُ في المَدرَسَةِ", "كُتِبَ الوَلَدُ دَرسَهُ في المَدرَسَةِ", "نعم"),
    "Devanagari": ("बिल्ली चटाई पर बैठी है और सोती है", "बिल्ला चटाई पर बैठी है और सोती है", "नमस्ते"),
    "Han": ("今天天气很好我们去公园散步", "今天天气不好我们去公园散步", "谢谢"),
    "Japanese": ("今日はラーメンを食べました。", "今日はうどんを食べました。", "どうも"),
    "Thai": ("วันนี้อากาศดีมากเราไปเดินเล่น", "วันนี้อากาศดีมากเราไปเดินเลน", "สบ"),
    "Cyrillic": ("Кошка сидит на ковре в доме", "Кошка лежит на ковре в доме", "привет"),
    "Lao": ("ມື້ນີ້ອາກາດດີຫຼາຍ", "ມື້ນີ້ອາກາດບໍ່ດີ", "ຂອບ"),
    "Khmer": ("ថ្ងៃនេះអាកាសធាតុល្អណាស់", "ថ្ងៃនេះអាកាសធាតុមិនល្អ", "បាទ"),
    "Burmese": ("ဒီနေ့ရာသီဥတုကောင်းတယ်", "ဒီနေ့ရာသီဥတုဆိုးတယ်", "ဟုတ်"),
    "Greek": ("η γάτα κάθεται στο χαλί τώρα", "η γάτα κοιμάται στο χαλί τώρα", "Καλημέρα"),
    "Latin with accents": ("où es-tu né, à Nîmes ?", "ou es-tu ne, à Nîmes ?", "jamais"),
}
TOKENIZERS = dict.fromkeys(SCRIPTS, "13a") | {
    "Han": "zh", "Japanese": "zh", "Thai": "char", "Lao": "char", "Khmer": "char",
    "Burmese": "char",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_right_answer_scores_100_and_a_near_one_less(script: str) -> None:
    right, near, other = SCRIPTS[script]
    cut = bleu_tokenizer_for([right])
    assert cut == TOKENIZERS[script]
    measured = TextMetrics(("bleu", "rouge", "chrf"), bleu_tokenizer=cut)
    scores = [measured.values(measured.score([given], [[right]])) for given in (right, near, other)]
    for name in measured.names:
        assert scores[0][name] == pytest.approx(100), name
        assert 20 < scores[1][name] < 99, name
        assert scores[2][name] < scores[1][name], name


@pytest.mark.parametrize("script", SCRIPTS)
def test_composed_and_decomposed_letters_are_one_word(script: str) -> None:
    right = SCRIPTS[script][0]
    assert words_of(unicodedata.normalize("NFD", right)) == words_of(right)
    # Every letter, mark and digit is in some word.
    kept = [c for c in unicodedata.normalize("NFC", right.lower())
            if unicodedata.category(c)[0] in "LMN"]  # fmt: skip
    assert "".join(words_of(right)) == "".join(kept)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße_42 e\u0301té", ["straße", "42", "été"]),
        ("我用iPhone15拍照", ["我", "用", "iphone15", "拍", "照"]),
        ("ラーメン3杯", ["ラ", "ー", "メ", "ン", "3", "杯"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("人々", ["人", "々"]),
        ("… — 🙂", []),
    ],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@given(st.text(st.characters(codec="ascii"), max_size=60), st.booleans())
def test_ascii_words_are_those_of_rouge_score(text: str, stemmer: bool) -> None:
    assert Words(stemmer).tokenize(text) == DefaultTokenizer(stemmer).tokenize(text)


_LINES = st.lists(st.text(string.ascii_letters + " .,1", max_size=12), max_size=4).map("\n".join)


@given(st.lists(_LINES, min_size=1, max_size=3), _LINES, st.booleans())
def test_ascii_scores_are_those_of_rouge_score(
    references: list[str], prediction: str, stemmer: bool
) -> None:
    measured = TextMetrics(("rouge",), rouge_stemmer=stemmer)
    direct = RougeScorer(list(ROUGE), use_stemmer=stemmer).score_multi(references, prediction)
    scores = measured.values(measured.score([prediction], [references]))
    assert scores == {name: pytest.approx(100 * direct[name].fmeasure) for name in ROUGE}


def test_the_tokenizer_of_mixed_texts_is_that_of_most_words() -> None:
    chinese, english = SCRIPTS["Han"][0], "the cat sat on the mat"
    assert bleu_tokenizer_for([english, english, chinese]) == "zh"
    assert bleu_tokenizer_for([english] * 9 + [chinese]) == "13a"
    assert bleu_tokenizer_for([chinese, SCRIPTS["Thai"][0] * 3]) == "char"
    assert bleu_tokenizer_for(["", "..."]) == "13a"
