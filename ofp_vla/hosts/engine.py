"""The levers of the fast path: what each leaves out, and the one switch that puts it back.

`--policy.engine=off` leaves all of them out, `--policy.engine=-unmasked,-times` two; `+fp8` asks for one that
is off. Weights, adapters, roles and types may change between any two calls: `graphs` reads weights in place
and sees when they move; `packed` and `constants` keep copies, and `ofp_vla.hosts.fast.freshness` says when
these are made again. docs/performance.md says what each is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

# Types of devices for which the fast path picks other kernels and sizes than for a CPU.
GPUS = {"cuda"}


@dataclass(frozen=True)
class Levers:
    """Which levers are on.

    Attributes:
        cameras: pictures of all cameras go through the vision tower in one call.
        vision: the vision tower of a bfloat16 policy, whose weights LeRobot keeps in float32, multiplies in
            bfloat16 where no gradient is wanted. With `fp8` the only levers that are not exact.
        trim: columns of the prompt that are padding in every row are dropped.
        last_layer: of the prefix's last layer only keys and values are computed.
        unmasked: no mask where no token is padding and every token sees all others.
        times: what the expert makes of the times of a sampling is computed once, not for each row and step.
        one_wait: all numbers about the inputs that have to be known on the host are read together.
        graphs: on a GPU, work without gradient is recorded at the second call of a shape and repeated.
        packed: hosts act by copies of their weights that are merged, cast and folded once.
        constants: what the expert makes of an interval of time is kept as long as those copies.
        compile: the layer functions are compiled on a GPU.
        buckets: prompts are padded to few lengths where a shape costs something, as with a captured graph.
        fp8: the prefix multiplies in float8 on a card that can, unless its actions differ by too much.
    """

    cameras: bool = True
    vision: bool = True
    trim: bool = True
    last_layer: bool = True
    unmasked: bool = True
    times: bool = True
    one_wait: bool = True
    graphs: bool = True
    packed: bool = True
    constants: bool = True
    compile: bool = True
    buckets: bool = True
    fp8: bool = False

    @classmethod
    def names(cls) -> list[str]:
        """The levers that are on unless they are left out."""
        return [lever.name for lever in fields(cls) if lever.default]

    @classmethod
    def options(cls) -> list[str]:
        """Those that have to be asked for."""
        return [lever.name for lever in fields(cls) if not lever.default]

    @classmethod
    def of(cls, text: str) -> Levers:
        """The levers of `on`, `off`, or a list of those to leave out and to ask for: `-unmasked,-times,+fp8`.

        Raises:
            ValueError: another word.
        """
        names, options = cls.names(), cls.options()
        if text == "off":
            return cls(**dict.fromkeys(names, False))
        if text == "on":
            return cls()
        words = [word.strip() for word in text.split(",")]
        known = {"-" + name: False for name in names} | {"+" + name: True for name in options}
        unknown = [word for word in words if word not in known]
        if unknown:
            raise ValueError(
                f"must be 'on', 'off', or levers to leave out and to ask for as in "
                f"'-{names[0]},+{options[0]}'; {unknown[0]!r} is none of {list(known)}"
            )
        return replace(cls(), **{word[1:]: known[word] for word in words})
