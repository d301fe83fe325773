"""The embedded bimanual suite on gym-aloha's robot."""

from robotwin_eval.sim.aloha.gl import choose_backend

# MuJoCo reads MUJOCO_GL when it is imported, and everything below imports it.
choose_backend()

from robotwin_eval.sim.aloha.suite import AlohaSuite  # noqa: E402

__all__ = ["AlohaSuite"]
