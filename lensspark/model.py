"""A trained model: one folder with its weights, the configuration it was trained with, its basis and its card.

    MODEL/weights.npz    arrays by "layer/weight" name (no pickles)
    MODEL/config.json    sections input, network, loss, training and the window of lensspark.config
    MODEL/basis.npz      the eigenbasis of the foreground fit
    MODEL/card.json      what the model is, how it was trained, what it measures; sha256 of the three files above

The sha256 of card.json names the model: it covers every byte of the folder that matters.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lensspark import config as configuration
from lensspark.checked import section
from lensspark.config import Config, Input, Network
from lensspark.eigen import Basis
from lensspark.spectrum import window_pixels

FILES = ("weights.npz", "config.json", "basis.npz")
SECTIONS = ("input", "network", "loss", "training")


@dataclass(frozen=True)
class Model:
    """The bytes of a model's files, verified; small enough (about 2 MB) to be broadcast as it is."""

    files: dict[str, bytes]

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """The model in `folder`. Raises ValueError, naming the file, if one is missing or not what the card says."""
        folder = Path(folder)
        files = {}
        for name in ("card.json", *FILES):
            try:
                files[name] = (folder / name).read_bytes()
            except OSError as error:
                raise ValueError(f"{folder}: not a model: {name}: {error.strerror}") from error
        return cls(files).verified()

    @classmethod
    def named(cls, name: str) -> Model:
        """A shipped model by its name ("default"), or the model in the folder `name`."""
        return cls.load(cls.place(name))

    @staticmethod
    def place(name: str) -> Path:
        """The folder of `named`. Raises ValueError if there is none."""
        if Path(name).is_dir():
            return Path(name)
        try:
            return configuration.resource(f"models/{name}")
        except FileNotFoundError as error:
            raise ValueError(f"score.model = {name!r}: expected a shipped model's name or a model's folder") from error

    @classmethod
    def make(cls, weights: dict[str, np.ndarray], settings: Config, basis: bytes, card: dict[str, Any]) -> Model:
        """A model from its parts; `card` gets the hashes."""
        stream = io.BytesIO()
        np.savez(stream, **weights)
        sections = {name: asdict(getattr(settings, name)) for name in SECTIONS} | {"window": settings.read.window}
        files = {"weights.npz": stream.getvalue(), "config.json": json.dumps(sections, indent=1).encode(),
                 "basis.npz": basis}
        card = card | {"sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
        return cls({"card.json": json.dumps(card, indent=1).encode(), **files})

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)

    def verified(self) -> Model:
        """Itself, if the bytes agree with the card's hashes; else raises ValueError."""
        hashes = self.card.get("sha256") if isinstance(self.card, dict) else None
        for name in FILES:
            found = hashlib.sha256(self.files[name]).hexdigest()
            expected = hashes.get(name) if isinstance(hashes, dict) else None
            if found != expected:
                raise ValueError(f"model: {name} has sha256 {found}, its card says {expected}")
        return self

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.files["card.json"]).hexdigest()

    @cached_property
    def card(self) -> dict[str, Any]:
        try:
            return json.loads(self.files["card.json"])
        except ValueError as error:
            raise ValueError(f"model: card.json is not JSON: {error}") from error

    @cached_property
    def _config(self) -> dict[str, Any]:
        return json.loads(self.files["config.json"])

    @cached_property
    def input(self) -> Input:
        return section(Input, self._config["input"], "input")

    @cached_property
    def network(self) -> Network:
        return section(Network, self._config["network"], "network")

    @cached_property
    def window(self) -> tuple[float, float]:
        """(low, high) in Angstrom."""
        low, high = self._config["window"]
        return low, high

    @property
    def pixels(self) -> tuple[int, int]:
        """First pixel of the 1e-4 dex grid and number of pixels of the window."""
        return window_pixels(self.window)

    @cached_property
    def basis(self) -> Basis:
        return Basis.load(self.files["basis.npz"])

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(self.files["weights.npz"]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if not (isinstance(array, np.ndarray) and array.dtype.kind == "f"):
                raise ValueError(f"model: weights.npz: {name!r} is no array of floats")
        return arrays
