"""The levers of the fast path: what each leaves out, and the one switch that puts it back.

`--policy.engine=off` leaves all of them out, `--policy.engine=-unmasked,-times` two. Weights, adapters, roles
and types may change between any two calls: only `graphs` keeps anything from one to the next, and it reads
weights in place and sees when they move. docs/performance.md says what each is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Levers:
    """Which levers are on.

    Attributes:
        cameras: pictures of all cameras go through the vision tower in one call.
        vision: the vision tower of a bfloat16 policy, whose weights LeRobot keeps in float32, multiplies in
            bfloat16 where no gradient is wanted. The only lever that is not exact.
        trim: columns of the prompt that are padding in every row are dropped.
        last_layer: of the prefix's last layer only keys and values are computed.
        unmasked: no mask where no token is padding and every token sees all others.
        times: what the expert makes of the times of a sampling is computed once, not for each row and step.
        one_wait: all numbers about the inputs that have to be known on the host are read together.
        graphs: on a GPU, work without gradient is recorded at the second call of a shape and repeated.
    """

    cameras: bool = True
    vision: bool = True
    trim: bool = True
    last_layer: bool = True
    unmasked: bool = True
    times: bool = True
    one_wait: bool = True
    graphs: bool = True

    @classmethod
    def names(cls) -> list[str]:
        """The levers."""
        return [lever.name for lever in fields(cls)]

    @classmethod
    def of(cls, text: str) -> Levers:
        """The levers that `on`, `off` or a list like `-unmasked,-times` leaves.

        Raises:
            ValueError: another word.
        """
        names = cls.names()
        if text in ("on", "off"):
            return cls(**dict.fromkeys(names, text == "on"))
        left_out = [word.strip() for word in text.split(",")]
        unknown = [word for word in left_out if not word.startswith("-") or word[1:] not in names]
        if unknown:
            raise ValueError(
                f"must be 'on', 'off', or levers to leave out as in '-{names[0]},-{names[-1]}'; "
                f"{unknown[0]!r} is none of {['-' + name for name in names]}"
            )
        return replace(cls(), **{word[1:]: False for word in left_out})
