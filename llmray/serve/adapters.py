"""LoRA adapters beside one copy of the weights, by name; a step computes the requests of one adapter at a time.

peft keeps the adapters' matrices beside the layers that they change. Which of them a pass uses is a setting of the
layers, so requests are grouped by adapter and the setting is changed between groups. Rejected: merging (a copy of the
weights for each adapter, and none can be merged into four bits without loss) and peft's `adapter_names` (one
adapter for each row of a batch, where ours has one row).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmray.errors import InputError


class Adapters:
    """The adapters of one model."""

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        """Load peft folders into `model`.

        Raises:
            InputError: a folder holds no adapter, or one that does not fit the model.
        """
        self.names = tuple(folders)
        self._layers: list[Any] = []
        self._active: str | None = None
        if not folders:
            return
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer

        wrapped: Any = None
        for name, folder in folders.items():
            try:
                if wrapped is None:
                    wrapped = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
                else:
                    wrapped.load_adapter(folder, adapter_name=name)
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise InputError(f"the adapter {name} cannot be loaded from {folder}: {error}") from error
        model.eval()
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self._active = self.names[-1]
        self.use(None)

    def use(self, name: str | None) -> None:
        """Compute with an adapter from now on, or with none."""
        if name == self._active:
            return
        for layer in self._layers:
            if name is not None:
                layer.set_adapter(name, inference_mode=True)
            if (name is None) != (self._active is None):
                # not `enable_adapters`, which would ask for gradients
                layer._disable_adapters = name is None
        self._active = name
