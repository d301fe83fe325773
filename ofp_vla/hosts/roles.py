"""Weight roles over one base: `student` is trained, `ema` its moving average, `teacher` the start.

`fake`, a second network, starts as the teacher and is trained beside the student. LoRA: a role is a named
PEFT adapter; `teacher` is the base with adapters off, or a frozen adapter if the start has one that changes
the base. PEFT saves every adapter beside the default one. Whole tensors (no LoRA): a role is a second set of
the trained tensors, swapped in place, and never trained.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

STUDENT = "student"
EMA = "ema"
TEACHER = "teacher"
FAKE = "fake"
TRAINED = (STUDENT, FAKE)
DEFAULT_ADAPTER = "default"
# The prefix that PEFT puts before the policy's names in an adapter's file.
PEFT_PREFIX = "base_model.model."


class Roles(ABC):
    """The weight roles of one policy; `available` grows when a role is added.

    Attributes:
        active: the role whose weights the policy holds now.
    """

    def __init__(self, policy: nn.Module) -> None:
        # Any: PEFT adds attributes that torch's typing does not know.
        self.policy: Any = policy
        self.active = STUDENT

    @property
    @abstractmethod
    def available(self) -> frozenset[str]:
        """Names that `use` accepts now."""

    @abstractmethod
    def add(self, role: str) -> None:
        """Adds `role`: a copy of the student (`ema`), or of the weights at the start (`teacher`, `fake`)."""

    @abstractmethod
    def _switch(self, role: str) -> AbstractContextManager[None]:
        """Context in which the policy's modules hold the weights of `role`."""

    @abstractmethod
    def tensors(self, role: str) -> dict[str, Tensor]:
        """Trained tensors of `role` by name; the same names and order for every role."""

    def held(self) -> list[Tensor]:
        """Tensors that roles keep beside those of the policy's modules."""
        return []

    def routing(self) -> object:
        """What decides, beside the role, which weights a pass reads; equal values, equal weights."""
        return ()

    def stand_ins(self, role: str) -> dict[int, tuple[Mapping[str, Tensor], str]]:
        """For parameters, by id, that stand in a module only while `role` is used: where they are kept."""
        return {}

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Runs the policy with the weights of `role` inside the context.

        Raises:
            KeyError: the role has not been added.
        """
        if role in (STUDENT, self.active):
            yield
            return
        if role not in self.available:
            raise KeyError(f"weight role {role!r} is not available; have {sorted(self.available)}")
        before, self.active = self.active, role
        try:
            with self._switch(role):
                yield
        finally:
            self.active = before

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Relative distance ||student - ema|| / ||ema|| over the trained tensors, a scalar."""
        student, ema = self.tensors(STUDENT), self.tensors(EMA)
        gap = torch.stack([((student[k].float() - ema[k].float()) ** 2).sum() for k in ema]).sum()
        norm = torch.stack([(ema[k].float() ** 2).sum() for k in ema]).sum()
        return (gap / (norm + 1e-12)) ** 0.5


def _adapter_modules(policy: nn.Module) -> list[Any]:
    return [m for m in policy.modules() if isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper))]


def has_adapters(policy: nn.Module) -> bool:
    """Whether PEFT has wrapped modules of `policy`; it then sets `peft_config` on it."""
    return hasattr(policy, "peft_config")


class AdapterRoles(Roles):
    """Roles as named PEFT adapters inside `policy` (the module that PEFT wrapped in place)."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy)
        # Cached, because every pass of a role would otherwise walk through the whole policy twice.
        self._routed = _adapter_modules(policy)
        self._found: dict[tuple[str, tuple[str, ...]], list[tuple[str, dict[str, Any], str]]] = {}
        self._base_teaches = False

    @property
    def available(self) -> frozenset[str]:
        """The student, every other adapter, and `teacher` if that is the base."""
        named = set(self.policy.peft_config) - {DEFAULT_ADAPTER}
        return frozenset({STUDENT, *named} | ({TEACHER} if self._base_teaches else set()))

    def add(self, role: str) -> None:
        """Adds `role` as a copy of the present student; call it before the first step.

        While the student equals the base, as with a new adapter, the teacher is the base and takes no memory.
        """
        if role in self.available:
            return
        if role in (TEACHER, FAKE) and (self._base_teaches or not self.student_changes_base()):
            if role == TEACHER:
                self.teach_by_base()
            else:
                # A product that starts at zero leaves the base unchanged, whatever the student started from.
                self._inject(role, init_lora_weights=True)
            return
        self._inject(role)
        source, target = self.tensors(STUDENT), self.tensors(role)
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(source[name])

    def teach_by_base(self) -> None:
        """Makes the base without adapters the teacher, as it is for an adapter that a run adds itself."""
        self._base_teaches = True

    def load(self, role: str, saved: dict[str, Tensor]) -> None:
        """Adds `role` with the tensors that PEFT saved for it, by PEFT's names.

        Raises:
            ValueError: names or shapes differ from the student's adapter.
        """
        found = {k.removeprefix(PEFT_PREFIX): v for k, v in saved.items()}
        own = {name.replace(".modules_to_save.", "."): t for name, t in self.tensors(STUDENT).items()}
        wrong = [f"{k} is missing" for k in sorted(own.keys() - found.keys())]
        wrong += [f"{k} is unexpected" for k in sorted(found.keys() - own.keys())]
        wrong += [
            f"{k} is {tuple(found[k].shape)}, the student's is {tuple(t.shape)}"
            for k, t in own.items()
            if k in found and found[k].shape != t.shape
        ]
        if wrong:
            ranks = " (an adapter of another rank)" if all(" is (" in w for w in wrong) else ""
            raise ValueError(
                f"saved {role!r} adapter does not match the student's{ranks}: {'; '.join(wrong[:4])}"
            )
        self._inject(role)
        with torch.no_grad():
            for name, tensor in self.tensors(role).items():
                tensor.copy_(found[name.replace(".modules_to_save.", ".")])

    @torch.no_grad()
    def student_changes_base(self) -> bool:
        """Whether the student's adapter changes the base's weights; a new one's product is zero."""
        for name, tensor in self.tensors(STUDENT).items():
            if ".lora_" in name and not name.endswith("lora_A.weight") and bool(tensor.any()):
                return True
        for module in self._routed:
            if isinstance(module, ModulesToSaveWrapper):
                trained = module.modules_to_save[DEFAULT_ADAPTER].parameters()
                pairs = zip(trained, module.original_module.parameters(), strict=True)
                if not all(torch.equal(own.to(base.dtype), base) for own, base in pairs):
                    return True
        return False

    def routing(self) -> object:
        """Which adapters are on, merged and how strong, layer by layer."""
        routed = (vars(module) for module in self._routed)
        return self._base_teaches, [
            (
                tuple(layer["_active_adapter"]),
                layer["_disable_adapters"],
                tuple(layer.get("merged_adapters", ())),
                tuple(layer.get("scaling", {}).values()),
            )
            for layer in routed
        ]

    def _inject(self, role: str, **settings: Any) -> None:
        """Injects an adapter named `role` beside the student's, in float32, trained if `role` is."""
        shared = self.policy.peft_config
        config = copy.deepcopy(shared[DEFAULT_ADAPTER])
        config.inference_mode = True
        if role not in TRAINED:
            # Targets come from a role's weights, not from random parts of them.
            config.lora_dropout = 0.0
        for name, value in settings.items():
            setattr(config, name, value)
        with warnings.catch_warnings():
            # PEFT warns of the student's adapter, which is there on purpose.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            inject_adapter_in_model(config, self.policy, adapter_name=role)
        # The call above leaves its own dictionary behind; PeftModel saves what is in the shared one.
        shared[role] = config
        self.policy.peft_config = shared
        self._found.clear()
        for module in self._routed:
            module._active_adapter = [DEFAULT_ADAPTER]
        for tensor in self.tensors(role).values():
            tensor.data = tensor.detach().float()
            tensor.requires_grad_(False)
        for trained in self.available.intersection(TRAINED):
            for tensor in self.tensors(trained).values():
                tensor.requires_grad_(True)

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Adapter weights and fully trained modules of `role`, by name without the adapter's."""
        places = self._places(role, tuple(self.policy.peft_config))
        return {name: held[key] for name, held, key in places}

    def _places(self, role: str, adapters: tuple[str, ...]) -> list[tuple[str, dict[str, Any], str]]:
        """Name of each tensor of `role` and where it is; searching takes longer than moving an average."""
        if (role, adapters) not in self._found:
            marker = f".{DEFAULT_ADAPTER if role == STUDENT else role}."
            found = []
            for path, module in self.policy.named_modules():
                for key, tensor in module._parameters.items():
                    name = f"{path}.{key}"
                    is_adapter = ".lora_" in name or ".modules_to_save." in name
                    if tensor is not None and is_adapter and (marker in name or name.endswith(marker[:-1])):
                        own = name.replace(marker, ".") if marker in name else name[: -len(marker) + 1]
                        found.append((own, module._parameters, key))
            self._found = {(role, adapters): found} | {
                known: places for known, places in self._found.items() if known[1] == adapters
            }
        return self._found[role, adapters]

    @contextmanager
    def _switch(self, role: str) -> Iterator[None]:
        # PEFT's own set_adapter() would toggle requires_grad; only the routing has to change here.
        modules = self._routed
        before = [(m._active_adapter, m._disable_adapters) for m in modules]
        try:
            for module in modules:
                if role == TEACHER and self._base_teaches:
                    module._disable_adapters = True
                else:
                    module._active_adapter = [role]
            yield
        finally:
            for module, (active, disabled) in zip(modules, before, strict=True):
                module._active_adapter, module._disable_adapters = active, disabled


class _OfRole(dict[str, Tensor]):
    """The tensors of a role as they are at any time, another set in place of the first one too."""

    def __init__(self, sets: Mapping[str, Mapping[str, Tensor]], role: str) -> None:
        super().__init__()
        self._sets, self._role = sets, role

    def __missing__(self, name: str) -> Tensor:
        return self._sets[self._role][name]


class TensorRoles(Roles):
    """Roles as further sets of the trained tensors, swapped into the parameters in place."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy)
        self._sets: dict[str, dict[str, Tensor]] = {}

    @property
    def available(self) -> frozenset[str]:
        """The student and every set that was added or loaded."""
        return frozenset({STUDENT, *self._sets})

    def add(self, role: str) -> None:
        """Adds a float32 copy of the trained tensors as they are now.

        Raises:
            ValueError: `fake`, which would be a second trained network.
        """
        if role == FAKE:
            raise ValueError(
                "weight role 'fake' is trained beside the student; with whole tensors that would double the "
                "trained weights, their gradients and the optimiser's state. Train by LoRA "
                "(--peft.method_type=LORA)"
            )
        if role not in self._sets:
            trained = self.tensors(STUDENT)
            # float32: one EMA step is below the resolution of bfloat16.
            self._sets[role] = {name: p.detach().float().clone() for name, p in trained.items()}

    def tensors(self, role: str) -> dict[str, Tensor]:
        """The trained parameters, or the set kept for `role`."""
        if role != STUDENT:
            return self._sets[role]
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def held(self) -> list[Tensor]:
        """The tensors of every set."""
        return [tensor for tensors in self._sets.values() for tensor in tensors.values()]

    def forget(self) -> None:
        """Drops every role except the student; a new run makes its own from where it starts."""
        self._sets.clear()

    def load(self, role: str, tensors: dict[str, Tensor]) -> None:
        """Takes saved tensors for `role`.

        Raises:
            ValueError: names or shapes differ from the trained tensors.
        """
        trained = self.tensors(STUDENT)
        wrong = sorted(trained.keys() ^ tensors.keys())
        wrong += [k for k in trained.keys() & tensors.keys() if trained[k].shape != tensors[k].shape]
        if wrong:
            raise ValueError(f"saved {role!r} weights do not match the trained tensors: {wrong[:8]}")
        self._sets[role] = {k: tensors[k].to(p.device, torch.float32) for k, p in trained.items()}

    def stand_ins(self, role: str) -> dict[int, tuple[Mapping[str, Tensor], str]]:
        """See `Roles.stand_ins`; asked inside `use(role)`."""
        kept = _OfRole(self._sets, role)
        return {id(self.policy.get_parameter(name)): (kept, name) for name in self._sets.get(role, ())}

    @contextmanager
    def _switch(self, role: str) -> Iterator[None]:
        # Other parameters, not other data in the same: they are constants, and autograd keeps both apart.
        own: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for name, tensor in self._sets[role].items():
                path, _, last = name.rpartition(".")
                module = self.policy.get_submodule(path)
                parameter = getattr(module, last)
                own.append((module, last, parameter))
                constant = tensor.to(parameter.device, parameter.dtype)
                setattr(module, last, nn.Parameter(constant, requires_grad=False))
            # Autocast keeps its copies per parameter, whatever data the parameter holds by now.
            torch.clear_autocast_cache()
            yield
        finally:
            for module, last, parameter in own:
                setattr(module, last, parameter)
            torch.clear_autocast_cache()


def make_roles(policy: nn.Module, names: Sequence[str] = ()) -> Roles:
    """Makes the roles of `policy`: as adapters if PEFT wrapped it, otherwise as whole tensors."""
    roles: Roles = AdapterRoles(policy) if has_adapters(policy) else TensorRoles(policy)
    for name in names:
        roles.add(name)
    return roles
