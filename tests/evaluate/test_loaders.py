"""Tasks from files: every layout, and a message that says what is wrong with a file that fits none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import DataError
from bitwright.evaluate import load_custom, load_task, similarity_matrix_task
from bitwright.evaluate.agreement import EMBEDDINGS
from bitwright.evaluate.kinds import Classification, Pairs, Retrieval, SimilarityMatrix


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


PAIRS = [("A cat.", 'A "kitten".', "4.5"), ("A cat.", "A car.", "0"), ("一个人", "那人", "5")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "sentence1\tsentence2\tscore\n" + "\n".join("\t".join(row) for row in PAIRS)),
        ("a.tsv", "\n".join("\t".join(row) for row in PAIRS)),  # no header
        ("a.tsv", "\ufeffScore\tSentence2\tSentence1\tgenre\n" + "\n".join(f"{s}\t{b}\t{a}\tx" for a, b, s in PAIRS)),
        ("a.csv", 'text1,text2,similarity\r\nA cat.,"A ""kitten"".",4.5\r\nA cat.,A car.,0\r\n一个人,那人,5\r\n'),
        ("a.jsonl", jsonl(*({"sentence1": a, "sentence2": b, "label": float(s)} for a, b, s in PAIRS))),
    ],
)
def test_pairs(write, name, text):
    task = load_task(write(name, text))
    assert isinstance(task.kind, Pairs)
    assert [task.texts[i] for i in task.kind.first_P] == [a for a, _, _ in PAIRS]
    assert [task.texts[i] for i in task.kind.second_P] == [b for _, b, _ in PAIRS]
    assert task.kind.gold_P.tolist() == [4.5, 0, 5]
    assert len(task.texts) == 5  # each different text once


QUESTIONS = [
    ("喜欢打篮球的男生喜欢什么样的女生", "爱打篮球的男生喜欢什么样的女生", 1),
    ("我手机丢了，我想换个手机", "我想买个新手机，求推荐", 1),
    ("大家觉得她好看吗", "大家觉得跑男好看吗？", 0),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lcqmc.tsv", "\n".join(f"{a}\t{b}\t{label}" for a, b, label in QUESTIONS)),
        ("lcqmc.tsv", "text_a\ttext_b\tlabel\r\n" + "\r\n".join(f"{a}\t{b}\t{label}" for a, b, label in QUESTIONS)),
        ("lcqmc.csv", "query,title,label\n" + "\n".join(f"{a},{b},{label}" for a, b, label in QUESTIONS)),
        ("afqmc.jsonl", jsonl(*({"sentence1": a, "sentence2": b, "label": str(label)} for a, b, label in QUESTIONS))),
    ],
)
def test_questions_that_mean_the_same_or_not(write, name, text):
    """The layouts of LCQMC and AFQMC."""
    task = load_task(write(name, text))
    assert task.kind.name == "similarity"
    assert [task.texts[i] for i in task.kind.first_P] == [a for a, _, _ in QUESTIONS]
    assert [task.texts[i] for i in task.kind.second_P] == [b for _, b, _ in QUESTIONS]
    assert task.kind.gold_P.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "sentence\tlabel\nwell-conceived \t1\nbad\t0\n"),
        ("a.tsv", "well-conceived\t1\nbad\t0\n"),
        ("a.tsv", "1\twell-conceived\n0\tbad\n"),
        ("a.jsonl", jsonl({"text": "well-conceived", "label": 1}, {"text": "bad", "label": "Negative"})),
        ("a.label", "positive:fine well-conceived\nnegative:coarse bad\n"),
    ],
)
def test_classification(write, name, text):
    task = load_task(write(name, text), label_names=["NEGATIVE", "POSITIVE"])
    assert isinstance(task.kind, Classification)
    assert task.texts == ("well-conceived", "bad")
    assert task.kind.gold_U.tolist() == [1, 0]
    assert task.kind.n_classes == 2


def retrieval(write, qrels, name="qrels.tsv"):
    corpus = [{"_id": "d1", "title": "Wing", "text": "flies"}, {"_id": "d2", "title": "", "text": "swims"}]
    write("set/corpus.jsonl", jsonl(*corpus))
    write("set/queries.jsonl", jsonl({"id": 1, "text": "what flies"}, {"id": 2, "text": "what swims"}))
    return write(f"set/{name}", qrels).parents[name.count("/")]


@pytest.mark.parametrize(
    ("qrels", "name"),
    [
        ("query-id\tcorpus-id\tscore\n1\td1\t3\n1\td2\t1\n2\td1\t0\n", "qrels.tsv"),
        ("1 0 d1 3\n1 0 d2 1\n", "qrels.tsv"),
        ("query-id\tcorpus-id\tscore\n1\td1\t3\n1\td2\t1\n", "qrels/test.tsv"),
    ],
)
def test_retrieval(write, qrels, name):
    task = load_task(retrieval(write, qrels, name))
    assert isinstance(task.kind, Retrieval)
    assert task.texts == ("Wing flies", "swims", "what flies")  # a query that nothing answers is left out
    ((documents, gains),) = task.kind.relevant
    assert (documents.tolist(), gains.tolist()) == ([0, 1], [3, 1])


GOLD = np.array([[1, 0.2, 0.5], [0, 1, 0.9], [0, 0, 1]])


@pytest.mark.parametrize("name", ["matrix.npy", "matrix.csv", "matrix.txt"])
def test_similarity_matrix_of_a_directory(write, name):
    path = write("set/texts.txt", "one\ntwo\nthree\n").parent
    if name.endswith(".npy"):
        np.save(path / name, GOLD)
    else:
        np.savetxt(path / name, GOLD, delimiter="," if name.endswith(".csv") else " ")
    task = load_task(path)
    assert isinstance(task.kind, SimilarityMatrix)
    assert task.kind.gold_UU[1, 0] == task.kind.gold_UU[0, 1] == 0.2
    np.savez(path / "all.npz", texts=np.array(["one", "two", "three"]), matrix=GOLD + np.triu(GOLD, 1).T)
    same = load_task(path / "all.npz")
    assert same.texts == task.texts
    np.testing.assert_allclose(same.kind.gold_UU, task.kind.gold_UU)


def test_the_lee_corpus_is_a_similarity_matrix():
    """50 documents and their similarities as judged by people (Lee, Pincombe & Welsh 2005), from gensim's tests."""
    data = Path(pytest.importorskip("gensim").__file__).parent / "test" / "test_data"
    texts = (data / "lee.cor").read_text(encoding="latin-1").splitlines()
    task = similarity_matrix_task(texts, np.loadtxt(data / "similarities0-1.txt"))
    words = [set(text.lower().split()) for text in texts]
    vocabulary = sorted(set().union(*words))
    assert task.score(np.array([[word in own for word in vocabulary] for own in words], dtype=float)) > 0.1


def test_label_free_task_of_any_texts(write):
    task = load_task(write("a.txt", "first text\nsecond text\n\nthird text\n"), "label-free")
    assert task.kind == EMBEDDINGS
    assert sorted(task.texts) == ["first text", "second text", "third text"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\t1\nx\tz\tmany\n", "line 3: score 'many' is not a number"),
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\tnan\n", "line 2: score 'nan'"),
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\n", "line 2: score is missing"),
        ("a.tsv", "sentence1\tsentence2\tscore\nx\ty\t1\nx\tz\t1\n", "all 2 scores are 1"),
        ("a.tsv", "sentence1\tsentence2\tscore\n", "no rows"),
        ("a.tsv", "", "empty"),
        (
            "a.tsv",
            "sentence1\tsentence2\tstars\nx\ty\t1\n",
            "the columns are sentence1, sentence2, stars, but one of these",
        ),
        ("a.tsv", "x\ty\tz\tw\n", "4 columns.*Add a header"),
        ("a.tsv", "text\tlabel\ngood\tpositive\n", "line 2: label 'positive' is not a class"),
        ("a.jsonl", '{"text": "x"', "line 1: this line is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: every line must be a JSON object"),
        ("a.label", "NUM:dist\n", "line 1: a line must hold a label"),
        ("a.doc", "x", "not in '.doc'"),
        ("a.npz", "x", "`texts` .strings. and `matrix`"),
    ],
)
def test_files_that_cannot_be_used(write, name, text, message):
    with pytest.raises(DataError, match=message):
        load_task(write(name, text))


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("1\td1\n", "line 1: there are 2 columns"),
        ("query\tdocument\tgain\n1\td1\tgood\n", "line 2: gain 'good'"),
        ("query\tdocument\tgain\n", "no judgements"),
        ("7\td1\t1\n", "none of its 1 judgements"),
        ("1\td1\t0\n", "no query has a document"),
    ],
)
def test_judgements_that_cannot_be_used(write, qrels, message):
    with pytest.raises(DataError, match=message):
        load_task(retrieval(write, qrels))


def test_labels_must_be_classes_of_the_model(write):
    path = write("a.tsv", "text\tlabel\ngood\t7\n")
    with pytest.raises(DataError, match="label '7' is not a class of the model; its classes are no, yes"):
        load_task(path, label_names=["no", "yes"])


def damaged_npz(path, damage):
    np.savez(path, texts=np.array(["one", "two", "three"]), matrix=GOLD)
    whole = path.read_bytes()
    if damage == "an .npy":
        with path.open("wb") as file:
            np.save(file, GOLD)
    elif damage == "texts of no shape":
        np.savez(path, texts=np.array("one"), matrix=GOLD)
    elif damage == "words":
        np.savez(path, texts=np.array(["one", "two", "three"]), matrix=np.full((3, 3), "x"))
    else:
        path.write_bytes(
            {"empty": b"", "truncated": whole[:-40], "damaged": whole.replace(b"t\0\0\0w", b"w\0\0\0t")}[damage]
        )


@pytest.mark.parametrize("damage", ["empty", "truncated", "damaged", "an .npy", "texts of no shape", "words"])
def test_an_npz_that_is_none_is_refused(tmp_path, damage):
    damaged_npz(tmp_path / "a.npz", damage)
    with pytest.raises(DataError, match=r"a\.npz: this file must hold the arrays `texts`|a: not a matrix of numbers"):
        load_task(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["classification", "similarity", "retrieval"])
def test_an_npz_is_only_a_similarity_matrix(tmp_path, kind):
    np.savez(tmp_path / "a.npz", texts=np.array(["one", "two", "three"]), matrix=GOLD)
    with pytest.raises(
        DataError, match=f"a\\.npz: Bitwright reads an .npz file as a similarity matrix, .* of kind {kind}"
    ):
        load_task(tmp_path / "a.npz", kind)
    assert isinstance(load_task(tmp_path / "a.npz", "similarity matrix").kind, SimilarityMatrix)


@pytest.mark.parametrize("damage", ["empty", "truncated", "words", "an .npz"])
def test_a_matrix_file_that_is_none_is_refused(write, damage):
    path = write("set/texts.txt", "one\ntwo\nthree\n").with_name("matrix.npy")
    np.save(path, np.full((3, 3), "x") if damage == "words" else GOLD)
    if damage == "an .npz":
        with path.open("wb") as file:
            np.savez(file, GOLD)
    elif damage != "words":
        path.write_bytes(path.read_bytes()[: {"empty": 0, "truncated": -8}[damage]])
    with pytest.raises(DataError, match="not a matrix of numbers"):
        load_task(path.parent)


def test_what_is_no_task(write, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.tsv: there is no such file or directory"):
        load_task(tmp_path / "nowhere.tsv")
    with pytest.raises(DataError, match=r"the directory holds other\.txt"):
        load_task(write("set/other.txt", "x").parent)
    with pytest.raises(DataError, match="guess is not a kind of task; known are similarity"):
        load_task(tmp_path, "guess")
    with pytest.raises(DataError, match="a task of kind retrieval is a directory"):
        load_task(write("a.tsv", "x"), "retrieval")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 2)), r"shape \(2, 2\) for 3 texts"),
        (np.ones((3, 3)), "all 3 scores are 1"),
        (np.array([[1, 2, 3], [4, 1, 2], [3, 2, 1]]), r"2 at \(0, 1\), but 4 at \(1, 0\)"),
        (np.full((3, 3), np.nan), "NaN or infinite"),
    ],
)
def test_matrices_that_cannot_be_used(matrix, message):
    with pytest.raises(DataError, match=message):
        similarity_matrix_task(["a", "b", "c"], matrix)


def encode(texts):
    return np.array([[len(text), 1.0] for text in texts])


def test_a_metric_of_ones_own(write):
    path = write(
        "own.py",
        "import numpy as np\n"
        "def lengths(encode): return encode(['a', 'abc'])[:, 0]\n"
        "def error(encode): return float(encode(['abc'])[0, 0])\n"
        "error.higher_is_better = False\n",
    )
    task = load_task(f"{path}:lengths")
    assert task.run(encode).tolist() == [1, 3]
    assert task.score(task.run(encode)) == 2
    assert task.kind.higher_is_better
    assert not load_custom(f"{path}:error").kind.higher_is_better


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(encode): return 1\n", "no function 'own'; the file defines other"),
        ("own = 3\n", "no function 'own'; the file defines none"),
        ("import no_such_module\n", "raised ModuleNotFoundError"),
        ("def own(:\n", "raised SyntaxError"),
        ("class Odd(Exception): pass\nraise Odd('no')\n", "raised Odd: no"),
    ],
)
def test_files_without_a_metric(write, text, message):
    with pytest.raises(DataError, match=message):
        load_custom(f"{write('own.py', text)}:own")


def test_a_metric_that_raises_or_is_missing(write):
    path = write("own.py", "def own(encode): return {}['no such key']\n")
    with pytest.raises(DataError, match="own: the function raised KeyError: 'no such key'"):
        load_custom(f"{path}:own").run(encode)
    with pytest.raises(DataError, match="no such file"):
        load_custom("nowhere.py:own")


@pytest.mark.eval_data
@pytest.mark.skipif("BITWRIGHT_EVAL_DATA" not in os.environ, reason="BITWRIGHT_EVAL_DATA is not set")
@pytest.mark.parametrize(
    ("name", "kind", "n_texts"),
    [
        ("stsb/stsb-en-test.tsv", "similarity", 2552),
        ("stsb/stsb-zh-dev.tsv", "similarity", 2882),
        ("sst2/test.tsv", "classification", 872),
        ("trec6/test.label", "classification", 500),
        ("medline", "retrieval", 1033 + 29),
        ("cranfield", "retrieval", 1400 + 225),
    ],
)
def test_public_data_sets(name, kind, n_texts):
    trec = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    task = load_task(Path(os.environ["BITWRIGHT_EVAL_DATA"]) / name, label_names=trec if "trec" in name else None)
    assert (task.kind.name, len(task.texts)) == (kind, n_texts)
