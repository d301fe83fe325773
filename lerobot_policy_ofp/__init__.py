"""LeRobot imports this module by the distribution's name; it registers the policies and environments."""

import ofp_vla.envs
import ofp_vla.policies  # noqa: F401
