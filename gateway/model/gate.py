"""The golden gate: a version answers only after its own examples came back as they were at export."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from contract.document import Contract, ContractError
from contract.image import ImageError, decode
from contract.outputs import Outputs

Predict = Callable[[Contract, NDArray[np.uint8]], Outputs]
"""A version's contract and pixels (n, h, w, 3) to what the model server gives for them."""


class Refusal(Exception):
    """Why a version may not answer."""


def open_gate(description: bytes, predict: Predict, others: Iterable[bytes] = ()) -> Contract:
    """Read a version's contract and replay its golden examples through this process's decode and the model server.

    Args:
        description: What the version's `describe` signature returned.
        predict: Runs the version.
        others: What it returned on replicas that run another file of the export, with its own answers to the examples.

    Raises:
        Refusal: The contract cannot be read, or an example's probabilities or score differ by more than the tolerance.
    """
    try:
        contract, *files = map(Contract.from_json, (description, *others))
    except ContractError as exc:
        raise Refusal(str(exc)) from exc
    if not contract.golden:
        raise Refusal("Expected golden examples in the contract. Received none")
    for example in contract.golden:
        try:
            pixels = decode(example.image, contract.image).pixels
        except ImageError as exc:
            raise Refusal(f"Golden example {example.name!r}: {exc}") from exc
        received = predict(contract, pixels[np.newaxis])
        difference = received.difference(example)
        if not difference <= contract.tolerance and not any(  # also when it is NaN
            each.image == example.image and received.difference(each) <= file.tolerance
            for file in files
            for each in file.golden
        ):
            raise Refusal(
                f"Golden example {example.name!r}: expected probabilities within {contract.tolerance:g} of those at"
                f" export. Received a difference of {difference:g}. The gateway decodes images otherwise than training"
                " did, or the model server runs another model"
            )
    return contract
