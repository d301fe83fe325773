"""The networks of the hosts where they differ from LeRobot's: sizes and layers."""
