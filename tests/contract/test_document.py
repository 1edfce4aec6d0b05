"""contract/document.py: the contract JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contract.document import (
    Contract,
    ContractError,
    GoldenExample,
    ImageSpec,
    Novelty,
    Origin,
    find_identity,
    identity_bits,
    new_identity,
)

CONTRACT = Contract(
    model="pets",
    classes=("cat", "dog", "cat"),
    image=ImageSpec(32, 48, filter="lanczos", aspect="pad", background=(1, 2, 3)),
    origin=Origin(architecture="tiny", recipe={"seed": 1}),
    metrics={"test_accuracy": 0.5},
    golden=(GoldenExample("one", b"\x00\xff", (0.25, 0.5, 0.25), 0.125),),
    tolerance=0.01,
    identity="00ff00ff00ff00ff",
    novelty=Novelty(0.25, 0.02, 341),
)


def test_a_contract_reads_back_as_it_was_written() -> None:
    """JSON keeps every member, also classes with the same name."""
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("contract_version",), 2, "contract_version 1"),
        (("identity",), "00FF", "an identity of 16 hex digits"),
        (("identity",), 255, "an identity of 16 hex digits"),
        (("classes",), [], "class names"),
        (("classes",), ["a", "b"], "2 probabilities in golden example 'one'"),
        (("image", "filter"), "sharp", "a filter of"),
        (("image", "height"), 0, "height and width"),
        (("image", "background"), [0, 0, 300], "a background"),
        (("image", "new_member"), 1, "new_member"),
        (("golden",), None, "complete contract"),
        (("golden", "tolerance"), "abc", "complete contract"),
        (("golden", "examples"), [{"name": "one", "image": "", "probabilities": [10**400, 0, 0]}], "complete contract"),
        (("golden", "examples"), [{"name": "one", "image": "", "probabilities": ["a", 0, 0]}], "complete contract"),
        (("origin",), ["abc"], "complete contract"),
        (("novelty",), {"photos": 341}, "complete contract"),
    ],
)
def test_a_contract_that_cannot_be_read_says_which_member(path: tuple[str, ...], value: object, message: str) -> None:
    """Each kind of bad member is named."""
    document = json.loads(CONTRACT.to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ContractError, match=message):
        Contract.from_json(json.dumps(document))


def test_a_contract_without_a_score_or_examples_is_read() -> None:
    """Exports from before there was a score, later ones with more members, and what a gateway shows."""
    document = json.loads(CONTRACT.to_json())
    del document["novelty"], document["golden"]["examples"][0]["novelty"]
    assert "novelty" not in Contract.from_json(json.dumps(document)).to_json().decode()
    document["novelty"] = {"threshold": 0.5, "later": 1}
    del document["golden"]
    assert Contract.from_json(json.dumps(document)) == replace(CONTRACT, novelty=Novelty(0.5), golden=(), tolerance=0.0)


def test_an_identity_is_64_bits_and_names_a_signature() -> None:
    """It is found among a version's signatures, and its bits come with the answer, also when the first is set."""
    identity = new_identity()
    assert replace(CONTRACT, identity=identity).signature == f"export_{identity}"
    assert find_identity(["describe", f"export_{identity}", "serving_default"]) == identity
    assert find_identity(["describe", "export_to_pdf", "serving_default"]) == ""
    assert replace(CONTRACT, identity="").signature == "serving_default"
    assert (identity_bits("ffffffffffffffff"), identity_bits("0000000000000010")) == (-1, 16)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"contract_version": 1}'])
def test_text_that_is_no_contract_is_refused(text: str) -> None:
    """Neither broken JSON nor JSON of another kind passes."""
    with pytest.raises(ContractError, match="Expected"):
        Contract.from_json(text)
