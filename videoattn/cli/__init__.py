"""The command line: one file per command."""


def main() -> None:
    """Runs the command that the program's arguments name."""
    from videoattn.cli import app  # `import videoattn.cli.train` does not need it

    app.main()
