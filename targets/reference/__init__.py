"""The `reference` family: what every other family is compared with."""
