"""The golden gate: a version answers only after its own examples came back as they were at export."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from contract.document import Contract, ContractError
from contract.image import ImageError, decode

Predict = Callable[[Contract, NDArray[np.uint8]], NDArray[np.float32]]
"""A version's contract and pixels (n, h, w, 3) to probabilities (n, k), by the model server."""


class Refusal(Exception):
    """Why a version may not answer."""


def open_gate(description: bytes, predict: Predict) -> Contract:
    """Read a version's contract and replay its golden examples through this process's decode and the model server.

    Args:
        description: What the version's `describe` signature returned.
        predict: Runs the version.

    Raises:
        Refusal: The contract cannot be read, or an example's probabilities differ by more than the tolerance.
    """
    try:
        contract = Contract.from_json(description)
    except ContractError as exc:
        raise Refusal(str(exc)) from exc
    if not contract.golden:
        raise Refusal("Expected golden examples in the contract. Received none")
    for example in contract.golden:
        try:
            pixels = decode(example.image, contract.image).pixels
        except ImageError as exc:
            raise Refusal(f"Golden example {example.name!r}: {exc}") from exc
        received = predict(contract, pixels[np.newaxis])[0]
        difference = float(np.abs(received - np.array(example.probabilities, np.float32)).max())
        if not difference <= contract.tolerance:  # also when it is NaN
            raise Refusal(
                f"Golden example {example.name!r}: expected probabilities within {contract.tolerance:g} of those at"
                f" export. Received a difference of {difference:g}. The gateway decodes images otherwise than training"
                " did, or the model server runs another model"
            )
    return contract
