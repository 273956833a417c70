"""Entry point of ``svdcut`` and ``python -m svdcut``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from svdcut.allocator import tune_allocator

    tune_allocator()
    from svdcut.cli.app import run

    run()


if __name__ == "__main__":
    main()
