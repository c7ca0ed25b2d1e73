"""The command-line interface, with one file per command."""


def main() -> None:
    """Runs the command in `sys.argv`."""
    from videoattn.cli import app  # `import videoattn.cli.train` does not need it

    app.main()
