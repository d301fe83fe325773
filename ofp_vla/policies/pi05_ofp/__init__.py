"""The one-step π0.5 policy, found by LeRobot through its naming convention."""
