"""What each command of `videoattn` does, as functions of plain arguments; cli.py reads words."""
