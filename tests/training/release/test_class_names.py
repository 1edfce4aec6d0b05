"""training/release/class_names.py: class names in each form that people keep them in."""

import pytest

from training.errors import TrainingError
from training.release.class_names import read_classes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "cat\ndog\nelk\n"),
        ("windows.txt", "\ufeffcat\r\n\r\n dog\r\nelk"),
        ("labels.txt", "0 cat\n1 dog\n2 elk\n"),
        ("labels.txt", "0: cat\n1: dog\n2: elk"),
        ("labels.txt", "2,elk\n0,cat\n1,dog"),
        ("labels.txt", "1 cat\n2 dog\n3 elk"),
        ("labels.txt", "cat,0\ndog,1\nelk,2"),
        ("classes.json", '["cat", "dog", "elk"]'),
        ("class_indices.json", '{"elk": 2, "cat": 0, "dog": 1}'),
        ("labels.json", '{"0": "cat", "1": "dog", "2": "elk"}'),
        ("classes.txt", '["cat", "dog", "elk"]'),
        ("classes.csv", "class\ncat\ndog\nelk\n"),
        ("classes.csv", "index,name\n1,dog\n0,cat\n2,elk\n"),
        ("classes.csv", "Label,Class,Photos\n0,cat,9\n1,dog,8\n2,elk,7\n"),
        ("classes.csv", "class,label\n0,cat\n1,dog\n2,elk\n"),
        ("classes.csv", "0,cat\n1,dog\n2,elk\n"),
        ("classes.txt", "class,index\nelk,2\ncat,0\ndog,1"),
        ("classes.tsv", "Class Name\tClass ID\nelk\t2\ncat\t0\ndog\t1\n"),
        ("classes.csv", "id;name\n0;cat\n1;dog\n2;elk\n"),
        ("classes.txt", "0. cat\n1. dog\n2. elk"),
        ("classes.txt", "cat -> 0\ndog -> 1\nelk -> 2"),
        ("classes.txt", '"cat",\n"dog",\n"elk",'),
        ("classes.txt", "cat,\ndog,\nelk\n"),
        ("classes.txt", "cat;\ndog ;\nelk"),
        ("classes.txt", "cat, dog, elk,\n"),
        ("classes.txt", "cat, dog, elk\n"),
        ("classes.txt", "cat;dog; elk\n"),
        ("classes.txt", "cat\tdog\telk\n"),
        ("classes.txt", "['cat', 'dog', 'elk']"),
        ("classes.txt", "{0: 'cat', 1: 'dog', 2: 'elk'}"),
        ("classes.yaml", "names:\n- cat\n- dog\n- elk\n"),
        ("data.yaml", "nc: 3\nnames: ['cat', 'dog', 'elk']\n"),
        ("data.yaml", "path: photos\nnames:\n  0: cat\n  1: dog\n  2: elk\n"),
        ("data.yaml", "names: ['cat', 'dog', 'elk']\n\nroboflow:\n  version: 1\n"),
        ("coco.yaml", "names:\n  0: cat # small\n  1: 'dog'\n  2: elk\n\n# Download\ndownload: https://a.example\n"),
        ("data.yaml", "names: [cat, dog, elk]\nnc: 3\ntrain: images"),
        ("my.yaml", "animals:\n  - cat\n  - dog\n  - elk\n"),
        ("labels.json", '{"cat": "0", "dog": "1", "elk": "2"}'),
        ("labels.json", '{"cat": 0.0, "dog": 1.0, "elk": 2.0}'),
        ("labels.txt", "{0:'cat',1:'dog',2:'elk'}"),
        ("labels.json", "cat\ndog\nelk"),
        ("labels.yaml", "0 cat\n1 dog\n2 elk"),
        ("data.txt", "# YOLO\npath: photos\nnames:\n  0: cat\n  1: dog\n  2: elk\n"),
        ("classes.csv", "index,name\n1.0,dog\n0.0,cat\n2.0,elk\n"),
        ("config.json", '{"id2label": {"0": "cat", "1": "dog", "2": "elk"}, "label2id": {}}'),
    ],
)
def test_each_form_is_read(tmp_path, name, text):
    """The order is that of the numbers, or else of the lines."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_classes(tmp_path / name) == ("cat", "dog", "elk")


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("symbols.json", '["a", "[", "\\"Red\\""]', ("a", "[", '"Red"')),
        ("symbols.csv", "index,name\n0,[\n1,]\n", ("[", "]")),
        ("sizes.csv", "number,label\nA1,cat\nA2,dog\n", ("cat", "dog")),
        ("norway.yaml", "names: [no, yes, 1]", ("no", "yes", "1")),
        ("emoji.json", '["\\ud83d\\ude00", "b"]', ("😀", "b")),
        ("imagenet.json", '{"0": "crane", "1": "dog", "2": "crane"}', ("crane", "dog", "crane")),
        ("digits.csv", "class,index\n7,1\n3,0\n", ("3", "7")),
        ("digits.csv", "index,class\n1,7\n0,3\n", ("3", "7")),
        ("digits.csv", "label,class_id,class\n7,1,7\n3,0,3\n", ("3", "7")),
        ("digits.tsv", "Class\tID\n7\t2\n3\t1\n", ("3", "7")),
        ("digits.csv", "label,class\n9,3\n8,7\n", ("3", "7")),
        ("digits.csv", "id\n3\n7\n", ("3", "7")),
        ("line.txt", '"Doe; Jane", "x; y; z"', ("Doe; Jane", "x; y; z")),
        ("line.txt", "boys' shoes; girls' shoes", ("boys' shoes", "girls' shoes")),
    ],
)
def test_a_form_that_is_sure_has_names_of_any_kind(tmp_path, name, text, names):
    """Brackets, quotes, separators, what YAML takes for other than text, one name of two classes, and numbers.

    A column of numbers is the order only beside one of names.
    """
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == names


@pytest.mark.parametrize(
    "lines",
    [
        ("1 euro", "2 euro"),
        ("type 0", "type 1"),
        ("1", "7"),
        ("0", "1"),
        ("tench, Tinca tinca", "goldfish, Carassius auratus"),
        ("5 cent", "10 cent"),
        ("class", "label"),
        ("0.5 l", "1.5 l"),
        ("scale 1:10", "scale 1:43"),
        ("(background)", "cat (small)", "a) dog", ":)", ";", ","),
        ("]", "[", "'"),
        ("- cat", "dog"),
    ],
)
def test_names_with_numbers_and_commas_stay_as_they_are(tmp_path, lines):
    """A number is one of the order only if all lines have one, from 0 or 1 without a gap, beside names that differ."""
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    assert read_classes(tmp_path / "classes.txt") == lines


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"cat": 0, "dog": 2}', r"from 0 without a gap: \[0, 2\]"),
        ("a.json", '{"0": ["n01440764", "tench"]}', "Received .*a.json: "),
        ("a.json", '[{"name": "cat"}]', "a document with something else"),
        ("a.yaml", "name: cat", "'cat' in the place of a number"),
        ("a.txt", "[cat, dog]", r"Received .*a.txt: '\[cat, dog\]', which is neither JSON nor Python. Is a name"),
        ("a.txt", "[np.str_('cat'), np.str_('dog')]", "which is neither JSON nor Python"),
        ("a.txt", "{[1]: 2}", "which is neither JSON nor Python"),
        ("a.txt", "[" * 5000, "which is neither JSON nor Python"),
        ("a.txt", "[('cat', 0), ('dog', 1)]", "a document with something else"),
        ("a.yaml", "[cat, dog", r"which is no YAML: expected"),
        ("a.csv", "class\n'cat'\n'dog'", "the name \"'cat'\""),
        ("a.txt", "(\n'cat',\n'dog',\n)", "the name \"'cat'\""),
        ("a.txt", '"0": "cat",\n"1": "dog"', "the name '0\": \"cat'"),
        ("a.txt", "'cat' : 0,\n'dog' : 1,", "the name \"'cat'\""),
        ("a.txt", "'cat', 'dog'", "the name \"'cat'\""),
        ("a.txt", "('cat', 'dog')", "the name \"\\('cat'\""),
        ("classes.py", "CLASSES = (\n'cat',\n'dog',\n)", r"the name 'CLASSES = \('"),
        ("classes.py", 'CLASSES = ("cat", "dog")', r"the name 'CLASSES = \("),
        ("a.js", "const names = [\n'cat',\n'dog'\n]", r"the name 'const names = \['"),
        ("a.csv", "index,name\n#1,dog\n#0,cat", "'#1' in the place of a number"),
        ("a.txt", "0,cat\n2,dog", "from 0 without a gap"),
        ("a.txt", "cat\x1b[31m\ndog", r"the name 'cat\\x1b\[31m'"),
        ("a.json", "[]", "no name"),
        ("a.csv", "photo,size\na.jpg,3", "a CSV that begins with 'photo,size'"),
        ("a.csv", "class,index\ncat\ndog,1", "another length than the header"),
        ("a.csv", "class,index\ncat,0\ndog,0", "from 0 without a gap"),
        ("a.csv", "class,index\n3,0\n7,2", "from 0 without a gap"),
        ("a.csv", "", "a CSV that is empty"),
    ],
)
def test_other_forms_are_refused(tmp_path, name, text, message):
    """With the forms that are read, and what is wrong."""
    (tmp_path / name).write_text(text)
    with pytest.raises(TrainingError, match=f"(?s)one name a line.*{message}"):
        read_classes(tmp_path / name)


def test_what_was_read_is_logged(tmp_path, lines):
    """The first names with their numbers, as a form that is taken for another has no other sign."""
    (tmp_path / "classes.txt").write_text("1 person\n2 people")
    read_classes(tmp_path / "classes.txt")
    assert lines == [f"Read 2 classes from {tmp_path / 'classes.txt'}: 0 person, 1 people"]
