"""Save the state of a training run, so that `kill -9` costs at most the steps since the last checkpoint.

A checkpoint lies in the scratch folder, under the fingerprint of everything that shapes the result: only a run with the
same parameters, the same input files and the same code picks it up, and deletes it when the model is written.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import write_bytes
from pipeline.errors import UserError
from pipeline.locks import in_turn, remove_unless_awaited

DIGEST = hashlib.sha256().digest_size  # bytes of the checksum, which the file begins with


class Checkpoints:
    """Save and load the one checkpoint of the run with this fingerprint, in `scratch/checkpoints/FINGERPRINT/`.

    Args:
        stage: the command that trains, for the lines that are printed.
    """

    def __init__(self, scratch: Path, fingerprint: str, stage: str = "train"):
        self.stage = stage
        self.folder = scratch / "checkpoints" / fingerprint[:16]
        self.path = self.folder / "checkpoint.pt"

    @contextmanager
    def alone(self, output: Path) -> Iterator[None]:
        """Keep other processes from this checkpoint, and from the folder `output` that the run will write.

        A stage that DVC started waits for another process, such as a second queue worker with the same settings: the
        other one then leaves its checkpoint, and this one goes on from it. Under torchrun the first process does so.

        Raises:
            UserError: this process was started by hand, and another one is at work.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        folder = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]
        with in_turn(
            self.folder,
            [self.folder.parent / f"output-{folder}.lock"],
            waits=self.stage + ": {holder} trains into the same folder or with the same settings; waiting for it, then "
            "training goes on from its checkpoint",
            busy="{holder} trains into the same folder, or with the same settings",
            both="two runs at once would write the same checkpoint and the same model",
        ):
            yield

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint as a whole.

        Raises:
            UserError: the disk is full; the older checkpoint is then still there.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the saved state, or None when there is no checkpoint and the run starts from step 0.

        Raises:
            UserError: the file is damaged (torch alone would not notice a flipped bit). The file is not deleted.
        """
        if not self.path.exists():
            return None
        whole = self.path.read_bytes()
        digest = whole[:DIGEST]
        content = whole[DIGEST:]
        try:
            if hashlib.sha256(content).digest() != digest:
                raise pickle.UnpicklingError("its content does not match its checksum")
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            return state
        except pickle.UnpicklingError as error:
            raise UserError(
                f"the checkpoint {self.path} cannot be read: {str(error).splitlines()[0]}",
                "it was damaged after it was written, so the stopped run cannot be resumed",
                f"delete {self.folder} and run the same command again: training starts anew",
            ) from error

    def delete(self) -> None:
        """Delete the checkpoint, because the run has written its model; one that another process awaits stays."""
        remove_unless_awaited(self.folder)
