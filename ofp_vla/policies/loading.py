"""Strict loading of π-style safetensors: every key accounted for, or an error that names the keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ofp_vla.assets import PACKAGED_BASE, tiny_base
from ofp_vla.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = ".interval_head."


class CheckpointFiles:
    """Files of one checkpoint, in a folder or a Hub repository, with every Hub argument honoured."""

    def __init__(self, source: str | Path, **hub: Any) -> None:
        self.source = str(source)
        place = tiny_base() if self.source == PACKAGED_BASE else Path(source)
        self.folder = place if place.is_dir() else None
        self._hub = {k: v for k, v in hub.items() if v is not None}

    def get(self, name: str) -> Path | None:
        """Local path of file `name`, or None where the checkpoint does not have it.

        Raises:
            CheckpointError: The folder or repository itself cannot be found.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        if self.source.startswith((".", "/", "~")) or self.source.count("/") > 1:
            raise CheckpointError(f"checkpoint folder {self.source!r} does not exist")
        try:
            return Path(hf_hub_download(repo_id=self.source, filename=name, **self._hub))
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"checkpoint {self.source!r} is neither a folder nor in the Hub cache, and the Hub was not "
                f"reached; check the name, HF_HUB_OFFLINE and the network"
            ) from error
        except HfHubHTTPError as error:
            if (
                error.response is not None
                and error.response.status_code == 404
                and "Entry" in type(error).__name__
            ):
                return None
            raise CheckpointError(f"checkpoint {self.source!r}: {str(error).splitlines()[0]}") from error
        except HFValidationError as error:
            raise CheckpointError(f"checkpoint {self.source!r} is neither a folder nor a Hub name") from error

    def need(self, name: str) -> Path:
        """Like `get`, but a missing file is an error."""
        path = self.get(name)
        if path is None:
            raise CheckpointError(f"checkpoint {self.source!r} has no {name}")
        return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads one safetensors file.

    Raises:
        CheckpointError: The file is truncated or is not a safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is corrupt or truncated ({error}); download or write it again"
        ) from error


def read_weights(files: CheckpointFiles) -> dict[str, Tensor]:
    """All weights of a checkpoint, from one file or from the shards that its index names."""
    single = files.get(WEIGHTS)
    if single is not None:
        return read_tensors(single)
    index = files.get(INDEX)
    if index is None:
        other = [n for n in ("adapter_model.safetensors", "pytorch_model.bin", "model.pt") if files.get(n)]
        hint = f"; it holds {other[0]}, which is not a full safetensors checkpoint" if other else ""
        raise CheckpointError(f"checkpoint {files.source!r} has no {WEIGHTS}{hint}")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        weights.update(read_tensors(files.need(shard)))
    return weights


def load_strictly(
    module: nn.Module, weights: dict[str, Tensor], source: str, new: Iterable[str] = ()
) -> list[str]:
    """Copies `weights` into `module`; keys that contain one of `new` may be absent if all are.

    Returns:
        The keys that were absent and keep their initial value.

    Raises:
        CheckpointError: Missing, unexpected or wrongly shaped keys, by name.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(weights[k].shape)}, the model needs {tuple(own[k].shape)}"
        for k in sorted(own.keys() & weights.keys())
        if own[k].shape != weights[k].shape
    ]
    fresh = [k for k in own if any(part in k for part in new)]
    if fresh and set(fresh) <= set(missing):
        missing = [k for k in missing if k not in set(fresh)]
    else:
        fresh = []
    found = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:6])}" + (" ..." if len(keys) > 6 else "")
        for what, keys in found
        if keys
    ]
    if problems:
        raise CheckpointError(f"checkpoint {source!r} does not match the model; " + "; ".join(problems))
    module.load_state_dict(weights, strict=not fresh)
    return fresh


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file under a temporary name, then renames it."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
    os.replace(temporary, path)
