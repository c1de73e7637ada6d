"""The `ethos-u` family: Arm's neural processing units for microcontrollers and small systems."""
