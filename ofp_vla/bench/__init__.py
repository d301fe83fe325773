"""`ofp-vla bench`: what acting and training cost here, beside LeRobot's own and the floor."""
