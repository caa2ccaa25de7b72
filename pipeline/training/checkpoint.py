"""The state of a training run on disk, so that `kill -9` costs at most the steps since the last checkpoint.

A checkpoint lives in the scratch folder, under the fingerprint of everything that shapes the result: it is picked up
only by a run with the same parameters and the same input files, and deleted when that run has written its model.
"""

import hashlib
import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import write_bytes
from pipeline.errors import UserError

DIGEST = hashlib.sha256().digest_size  # the checksum stands before the content


class Checkpoints:
    """The one checkpoint of the run with this fingerprint, in `scratch/checkpoints/FINGERPRINT/`."""

    def __init__(self, scratch: Path, fingerprint: str):
        self.folder = scratch / "checkpoints" / fingerprint[:16]
        self.path = self.folder / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint as a whole. Raises UserError when the disk is full; the older one then stays."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state, or None when this run starts from nothing.

        Raises:
            UserError: the file is damaged (torch alone would not notice a flipped bit); nothing is deleted or trained.
        """
        if not self.path.exists():
            return None
        whole = self.path.read_bytes()
        digest, content = whole[:DIGEST], whole[DIGEST:]
        try:
            if hashlib.sha256(content).digest() != digest:
                raise pickle.UnpicklingError("its content does not match its checksum")
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"the checkpoint {self.path} cannot be read: {str(error).splitlines()[0]}",
                "it was damaged after it was written, so the stopped run cannot be resumed",
                f"delete {self.folder} and run the same command again: training starts anew",
            ) from error

    def delete(self) -> None:
        """Called once the model is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
