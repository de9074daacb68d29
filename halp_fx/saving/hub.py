"""A network's class -> one whose pruned networks go to the Hugging Face Hub, or to a folder, and come back from there.

class Net(nn.Module, HubMixin):
    def __init__(self, width=64): ...

small = halp_fx.prune(Net(), 0.5, x)
small.push_to_hub("me/small-net")
small = Net.from_pretrained("me/small-net")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

from torch import nn

from ..errors import CheckpointError
from ..extras import missing
from .rebuilding import load
from .taking import checked, save

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError as error:
    raise CheckpointError(missing("the mixin", "huggingface_hub", error, "hub")) from error

FILE = "model.safetensors"
"""What `halp_fx.save` writes, under the name by which the Hub knows weights."""


class HubMixin(ModelHubMixin, library_name="halp_fx", tags=["pruning", "halp_fx"]):
    """`push_to_hub`, `save_pretrained` and `from_pretrained` for a class of networks, when they are pruned.

    A folder holds `config.json`, the arguments of the dense network's `__init__` (as JSON: numbers, strings, lists),
    `model.safetensors`, which is what `halp_fx.save` writes, and a card. `from_pretrained` makes the dense network from
    the arguments, for its structure alone, and gives the rest to `halp_fx.load`. All three take the arguments of
    `huggingface_hub.ModelHubMixin`.
    """

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a pruned network to a folder, and to the Hub with `push_to_hub=True`.

        Raises:
            CheckpointError, ModelError: as `halp_fx.save`; nothing is written then.
        """
        checked(cast(nn.Module, self))  # Before the old files go.
        url: str | None = super().save_pretrained(save_directory, **options)
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        save(cast(nn.Module, self), save_directory / FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> Self:
        path = Path(model_id) / FILE
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cast(Self, load(path, lambda: cast(nn.Module, cls(**model_kwargs))))
