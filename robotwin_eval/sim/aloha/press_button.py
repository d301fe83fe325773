"""press_button: push a spring-loaded cap down with either arm while the other one stays away."""

from __future__ import annotations

import numpy as np

from robotwin_eval.sim.aloha.gl import mujoco
from robotwin_eval.sim.aloha.kinematics import ArmKinematics, grasp_rotation
from robotwin_eval.sim.aloha.robot import SIDES, TIP_REACH
from robotwin_eval.sim.aloha.task import FingerTips, Referee, Task, Waypoint, arm_geoms, touches, trajectory

# A tip that comes down 3 cm beside the centre must still press: small policies at 64 pixels end within 2-3
# cm, and the task is to choose an arm, not to aim. The closed fingers are 1.4 cm wide, so 3.5 cm leave a
# margin.
CAP_RADIUS = 0.035
CAP_TOP = 0.075
CAP_TRAVEL = 0.034
# Pressed at a third of its travel; the expert goes for 0.028, which forgives 1.7 cm of height.
PRESS_DEPTH = 0.011
EXPERT_DEPTH = 0.028
APPROACH_HEIGHT = 0.06
# The arm that does not press must keep its tip this far away, horizontally, during the whole episode.
CLEARANCE = 0.12

X_RANGE = (-0.13, 0.13)
Y_RANGE = (0.38, 0.62)
_PITCH = np.radians(60)
_ABOVE_STEP = 9
_DOWN_STEP = 13


class PressButton(Task):
    """A button in the middle of the table, where either arm reaches it."""

    name = "press_button"
    step_limit = 16
    demonstration_steps = 16
    modes = SIDES
    seen = (
        "Press the button.",
        "Push the red button down with one arm.",
        "Use either arm to press the button.",
        "Press the red button on the table.",
        "Reach out with one arm and push the button.",
        "Hit the button with one of the grippers.",
    )
    unseen = (
        "Push the button.",
        "With one hand, press down the red button.",
        "Press the button while the other arm stays away.",
        "Choose an arm and press the red button.",
    )
    bodies = f"""
    <body name="button" mocap="true" pos="0 0.5 0">
      <geom name="button_housing" type="cylinder" size="0.046 0.012" pos="0 0 0.012" rgba="1 0.85 0.1 1"/>
      <body name="button_cap" pos="0 0 {CAP_TOP - 0.02}">
        <joint name="button_slide" type="slide" axis="0 0 1" limited="true" range="{-CAP_TRAVEL} 0"
               stiffness="100" springref="0.01" damping="3"/>
        <inertial pos="0 0 0" mass="0.05" diaginertia="0.00002 0.00002 0.00003"/>
        <geom name="button_cap" type="cylinder" size="{CAP_RADIUS} 0.02" rgba="1 0.1 0.1 1"/>
      </body>
    </body>
    """
    # The cap sinks into its housing and down to the table.
    extra = """
    <contact>
      <exclude body1="button" body2="button_cap"/>
      <exclude body1="table" body2="button_cap"/>
      <exclude body1="table" body2="button"/>
    </contact>
    """

    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Draws the button's start and writes it into `data`."""
        data.mocap_pos[0] = (rng.uniform(*X_RANGE), rng.uniform(*Y_RANGE), 0.0)

    def heading(self, data: mujoco.MjData) -> np.ndarray:
        """From one arm's side of the table towards the other's."""
        return np.array([-1.0 if data.mocap_pos[0, 0] > 0 else 1.0, 0.0])

    def plan(self, kinematics: ArmKinematics, data: mujoco.MjData, mode: str) -> np.ndarray:
        """The expert's joint targets (demonstration_steps, 14)."""
        above, down = press_poses(kinematics, mode, data.mocap_pos[0])
        waypoints = (Waypoint(_ABOVE_STEP, above, 0.0), Waypoint(_DOWN_STEP, down, 0.0))
        return trajectory({mode: waypoints}, self.demonstration_steps)

    def referee(self, model: mujoco.MjModel) -> Referee:
        """A fresh referee for one episode."""
        return ButtonReferee(model)

    def truth(self, data: mujoco.MjData) -> np.ndarray:
        """(3,) metres, the middle of the cap's top before it is pressed."""
        return data.mocap_pos[0] + np.array([0.0, 0.0, CAP_TOP])


def press_poses(kinematics: ArmKinematics, side: str, button: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints (6,) of one arm above a button, whose place is (3,) metres, and with its cap pushed down."""
    x, y, _ = button
    base = (-0.469, 0.5) if side == "left" else (0.469, 0.5)
    rotation = grasp_rotation(float(np.arctan2(y - base[1], x - base[0])), _PITCH)
    above, down = (
        kinematics.solve(side, np.array([x, y, z]), rotation, reach=TIP_REACH)
        for z in (CAP_TOP + APPROACH_HEIGHT, CAP_TOP - EXPERT_DEPTH)
    )
    return above, down


class ButtonReferee(Referee):
    """Success: the cap goes down by one arm's contact, the other tip having stayed away since the start."""

    def __init__(self, model: mujoco.MjModel) -> None:
        super().__init__()
        self._tips = FingerTips(model)
        self._slide = int(model.joint("button_slide").qposadr[0])
        self._cap = frozenset([int(model.geom("button_cap").id)])
        self._arms = {side: arm_geoms(model, side) for side in SIDES}
        self._nearest = dict.fromkeys(SIDES, np.inf)
        # Height of each tip where it was lowest, and how far from the centre it was there.
        self._lowest = dict.fromkeys(SIDES, (np.inf, np.inf))
        self._depth = 0.0

    def update(self, data: mujoco.MjData) -> None:
        """Looks at the state after a few physics steps."""
        for side in SIDES:
            tip = self._tips.of(data, side)
            off = float(np.hypot(*(tip[:2] - data.mocap_pos[0, :2])))
            self._nearest[side] = min(self._nearest[side], off)
            self._lowest[side] = min(self._lowest[side], (float(tip[2]), off))
        depth = -float(data.qpos[self._slide])
        self._depth = max(self._depth, depth)
        for side, other in (SIDES, SIDES[::-1]):
            if touches(data, self._cap, self._arms[side]):
                self.mode = self.mode or side
                if depth > PRESS_DEPTH and self._nearest[other] > CLEARANCE:
                    self.success = True

    def measures(self) -> dict[str, float]:
        """`tip_error_mm`: how far from the cap's centre, horizontally, the pressing tip was at its lowest.

        The pressing arm is the one that touched the cap first; if none did, the one that came nearer.
        """
        side = self.mode or min(SIDES, key=self._nearest.__getitem__)
        return {"tip_error_mm": 1000 * self._lowest[side][1]}

    def reason(self) -> str:
        """Why the episode has not succeeded so far."""
        if self._depth <= PRESS_DEPTH:
            return f"cap pressed {1000 * self._depth:.0f} mm, needs {1000 * PRESS_DEPTH:.0f} mm"
        near = " and ".join(f"{side} {100 * self._nearest[side]:.0f} cm" for side in SIDES)
        return f"both tips came near the button ({near}); one must stay {100 * CLEARANCE:.0f} cm away"
