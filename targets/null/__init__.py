"""The `null` family: the skeleton to copy for a new chip, which runs anywhere.

A family is three files. Read them in this order: ``target.py`` says what the chip can do,
``lowering.py`` is the compile half, ``provider.py`` the run-time half. ``docs/adding-a-target.md``
walks through copying them.
"""
